"""Lets a resumed study keep the scores by which ASHA stops trials.

Seen on Ray 2.60: Tune saves a study's trials and its searcher, but not its scheduler. A resumed study would compare its trials
with no others, and trials that begin later with the scores that earlier trials had at far later steps.

It can go when tests/tuning/test_resumption.py::test_trials_are_compared_with_those_before_the_interruption passes without `Rungs`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.tune.schedulers import ASHAScheduler

from kiloseg.storage.filesystems import open_folder
from kiloseg.tuning.ray_workarounds.state_files import CALLBACKS, newest


class Rungs(tune.Callback):
    """Saves the state of a study's ASHA scheduler with the study.

    Args:
        scheduler: the study's scheduler. Tune pickles it and this callback into one file, so a resumed study has the same one.
        earlier: the state of another scheduler, with whose trials these are compared; None: they are compared with no others.
    """

    earlier: dict[str, Any] | None = None
    resumed: bool = False

    def __init__(self, scheduler: ASHAScheduler, earlier: dict[str, Any] | None = None) -> None:
        self.scheduler = scheduler
        self.earlier = earlier

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Takes over the scores of earlier trials. Tune calls this after `set_state`, if it does call that."""
        if self.earlier is not None and not self.resumed:
            self._restore(self.earlier)

    def get_state(self) -> dict[str, Any]:
        """Returns the scheduler's state, which Tune saves with the study."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "scheduler")
            self.scheduler.save(str(file))
            return {"scheduler": file.read_bytes()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the scheduler's state when a study is resumed, before the scheduler is told of the trials."""
        self.resumed = True
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "scheduler")
            file.write_bytes(state["scheduler"])
            self.scheduler.restore(str(file))


def saved_rungs(state: str) -> dict[str, Any] | None:
    """Returns the newest state of `Rungs` that Tune saved, for `Rungs(earlier)`; None if it saved none.

    Args:
        state: the folder in which Ray saves the study's state, by path or URL.
    """
    place = open_folder(state)
    name = newest(place.entries(), CALLBACKS)
    saved = {} if name is None else cloudpickle.loads(place.read(name))
    return next((each for each in saved.values() if isinstance(each, dict) and "scheduler" in each), None)
