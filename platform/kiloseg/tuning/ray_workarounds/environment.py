"""Sets environment variables that Ray reads; a comment on each says what goes wrong without it. Seen on Ray 2.60.

`TUNE_VARIABLES` can go when tests/tuning/test_faults.py::test_interruption_by_the_user and test_search.py pass without them. The
other variables only save time: benchmarks/orchestration.py shows how much.
"""

from __future__ import annotations

import os

from kiloseg.tuning.ray_workarounds.quiet import QUIET_VARIABLES

WORKER_VARIABLES = {
    # Every report waits for this interval, which is 2 s by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # The watcher for preempted cloud nodes costs seconds at the start and end of a trial.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Variables to set in the driver before Ray starts; Ray passes them on to Train's controllers."""

LOCAL_VARIABLES = {
    # Otherwise every process so far has an empty file of events, which the dashboard checks every 2 s.
    "RAY_event_log_reporter_enabled": "0",
    # Below this number of worker log files, Ray looks for new ones ten times a second among those of all processes so far.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
}
"""Variables to set before a cluster starts on this machine, where Ray's processes share the cores with the trials."""

TUNE_VARIABLES = {
    # Of Tune's own loggers we use only the one from which results are read back; TensorBoard's cannot log a history.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Otherwise Tune treats Ctrl-C as the end of the study and of its trials.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Otherwise Tune prints a traceback of 60 lines for every process that is lost; the console has a sentence instead, and the
    # study's table has the error.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
"""Variables to set in the driver before a study runs."""


def set_defaults(variables: dict[str, str]) -> None:
    """Sets the variables that the user has not set."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def set_tune_variables(num_trials: int, state: str) -> None:
    """Sets the variables that Tune reads when a study runs.

    Args:
        num_trials: number of trials of the study.
        state: folder in which Ray saves the study's state, by path or URL.
    """
    os.environ.update(TUNE_VARIABLES | QUIET_VARIABLES)
    # How often Tune saves the state that --resume reads; a study that is killed forgets trials that began since. The time to save
    # grows with the number of trials, and an object store needs several requests; the next save must not begin before it ends.
    period_s = max(num_trials / 50, 10 if "://" in state else 1)
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(period_s))
