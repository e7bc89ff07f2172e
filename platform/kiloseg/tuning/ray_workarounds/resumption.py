"""What an interrupted study needs, beyond what Tune keeps of it, to go on as one that was not."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from kiloseg.storage.filesystems import inside
from kiloseg.training.checkpoint import newest_step
from kiloseg.tuning.reports import RESUMED, STEP, UNREPORTED, run_of


class Rungs(tune.Callback):
    """Keeps the scores by which ASHA stops trials, which Tune does not.

    A study that is resumed would compare its trials with nobody, and those that begin later with the scores that trials of
    before had at far later steps.

    Args:
        scheduler: the study's; Tune keeps both in one file, and so takes them from there as what they are to each other.
    """

    def __init__(self, scheduler: ASHAScheduler) -> None:
        self.scheduler = scheduler

    def get_state(self) -> dict[str, Any]:
        """With the study's state."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "scheduler")
            self.scheduler.save(str(file))
            return {"scheduler": file.read_bytes()}

    def set_state(self, state: dict[str, Any]) -> None:
        """At a resumption, before the scheduler is told of the trials."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "scheduler")
            file.write_bytes(state["scheduler"])
            self.scheduler.restore(str(file))


class Retries(tune.Callback):
    """Counts a trial's failures anew once it has come further, so that they limit what never gets on, and not what takes long.

    A trial of days on spot machines may be interrupted any number of times.

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
        """A validation, or one that a checkpoint tells of."""
        self._count(trial, result.get(RESUMED, result[STEP]))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """After a failure, which is none if the run was preempted: that may be long before its first validation."""
        with contextlib.suppress(OSError):
            self._count(trial, newest_step(inside(self.checkpoints, f"{run_of(trial.trial_id)}/{UNREPORTED}")))

    def _count(self, trial: Trial, step: int) -> None:
        if step > self.reached.get(trial.trial_id, 0):
            self.reached[trial.trial_id] = step
            trial.run_metadata.num_failures = 0


@contextlib.contextmanager
def utc() -> Iterator[None]:
    """While entered this process tells the time in UTC.

    Tune names a study's state by the time at which the process began that writes it, and takes the last name for the newest
    state: local times of two machines, or of summer and winter, are in no order.
    """
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        del os.environ["TZ"]
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()
