"""Lets a resumed study keep the scores by which ASHA stops trials.

Seen on Ray 2.60: Tune saves a study's trials and its searcher, but not its scheduler. A resumed study would compare its trials
with no others, and trials that begin later with the scores that earlier trials had at far later steps.

It can go when tests/tuning/test_resumption.py::test_trials_are_compared_with_those_before_the_interruption passes without `Rungs`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler


class Rungs(tune.Callback):
    """Saves the state of a study's ASHA scheduler with the study.

    Args:
        scheduler: the study's scheduler. Tune pickles it and this callback into one file, so a resumed study has the same one.
    """

    def __init__(self, scheduler: ASHAScheduler) -> None:
        self.scheduler = scheduler

    def get_state(self) -> dict[str, Any]:
        """Returns the scheduler's state, which Tune saves with the study."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "scheduler")
            self.scheduler.save(str(file))
            return {"scheduler": file.read_bytes()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the scheduler's state when a study is resumed, before the scheduler is told of the trials."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "scheduler")
            file.write_bytes(state["scheduler"])
            self.scheduler.restore(str(file))
