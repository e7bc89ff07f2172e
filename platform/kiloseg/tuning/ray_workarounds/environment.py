"""Environment variables that Ray reads, each with what goes wrong without it. Seen on Ray 2.60.

`TUNE_VARIABLES` can go when tests/tuning/test_faults.py::test_interruption_by_the_user and test_search.py pass without them. The
others cost time only: benchmarks/orchestration.py shows how much.
"""

from __future__ import annotations

import os

WORKER_VARIABLES = {
    # The default of 2 s is waited for at every report.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Watches for preempted cloud nodes; costs seconds at the start and end of a trial.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Set in the driver before Ray starts; Ray hands them on to Train's controllers."""

LOCAL_VARIABLES = {
    # Every process that there ever was keeps a file of events, empty, that the dashboard looks at every 2 s.
    "RAY_event_log_reporter_enabled": "0",
    # Below so many files of workers Ray looks ten times a second for new ones, among those of all processes so far.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
}
"""Set before a cluster of this machine starts, whose processes share the cores with the trials."""

TUNE_VARIABLES = {
    # Of Tune's own loggers only the one that results are read back from; TensorBoard's cannot take a history.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune would take Ctrl-C for the end of the study, and its trials for ended ones.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
"""Set in the driver before a study runs."""


def set_defaults(variables: dict[str, str]) -> None:
    """Sets those of the variables that the user has not set."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def set_tune_variables(num_trials: int, state: str) -> None:
    """Sets what Tune reads when a study runs.

    Args:
        num_trials: trials of the study.
        state: folder in which Ray keeps the study, by path or URL.
    """
    os.environ.update(TUNE_VARIABLES)
    # How often Tune saves what --resume goes on from; a study that is killed forgets trials that began since. A saving takes time
    # in proportion to the trials, and on an object store some requests, during which the next must not begin.
    period_s = max(num_trials / 50, 10 if "://" in state else 1)
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(period_s))
