"""Failures of a trial are counted anew once it has come further.

Seen on Ray 2.60: `FailureConfig(max_failures)` counts all failures of a trial, so that one of days on preemptible machines ends
as failed though it advances each time. The limit is meant for trials that never get on.

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
    """Sets a trial's count of failures to 0 whenever the trial has come further than before.

    Args:
        checkpoints: folder of all trials' checkpoints, by path or URL.
    """

    def __init__(self, checkpoints: str) -> None:
        self.checkpoints = checkpoints
        self.reached: dict[str, int] = {}
        """Step that each trial is known to have come to."""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Takes the step of a validation, or of the checkpoint that a trial goes on from."""
        self._count(trial, result.get(RESUMED, result[STEP]))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Takes the step of the checkpoint of a preempted run, which may be long before its first validation."""
        with contextlib.suppress(OSError):
            self._count(trial, newest_step(inside(self.checkpoints, f"{run_of(trial.trial_id)}/{UNREPORTED}")))

    def _count(self, trial: Trial, step: int) -> None:
        if step > self.reached.get(trial.trial_id, 0):
            self.reached[trial.trial_id] = step
            trial.run_metadata.num_failures = 0
