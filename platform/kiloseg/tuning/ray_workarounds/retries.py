"""Resets a trial's count of failures when the trial makes progress.

Seen on Ray 2.60: `FailureConfig(max_failures)` counts all failures of a trial, so that a trial that runs for days on preemptible
machines ends as failed although it advances each time. The limit is meant for trials that make no progress.

It can go when tests/tuning/test_resumption.py::test_failures_count_only_where_a_trial_does_not_get_on passes without `Retries`.
"""

from __future__ import annotations

import contextlib
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from kiloseg.storage.filesystems import inside
from kiloseg.training.checkpoint_names import newest_step
from kiloseg.tuning.reports import RESUMED, STEP, UNREPORTED, run_of


class Retries(tune.Callback):
    """Sets a trial's count of failures to 0 whenever the trial has reached a later step than before.

    Args:
        checkpoints: folder of all trials' checkpoints, by path or URL.
    """

    def __init__(self, checkpoints: str) -> None:
        self.checkpoints = checkpoints
        self.reached: dict[str, int] = {}
        """Latest step that each trial is known to have reached, by the trial's id."""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Records the step of a validation, or of the checkpoint from which a trial continues."""
        self._count(trial, result.get(RESUMED, result[STEP]))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records the step of a preempted run's checkpoint, which may come long before the run's first validation."""
        with contextlib.suppress(OSError):
            self._count(trial, newest_step(inside(self.checkpoints, f"{run_of(trial.trial_id)}/{UNREPORTED}")))

    def _count(self, trial: Trial, step: int) -> None:
        if step > self.reached.get(trial.trial_id, 0):
            self.reached[trial.trial_id] = step
            trial.run_metadata.num_failures = 0
