"""Passes results to Optuna only for trials that Optuna knows and that it does not consider ended.

Seen on Ray 2.60: Tune saves its own state and the searcher's at different moments. In a resumed study, Tune may report results of
a trial that Optuna considers ended (because it failed), or that Optuna does not know (because it began between the two saves,
right before a crash). Both raise an error that ends the study. In addition, if the space is a function, Tune does not accept
settings for the first trials unless their names are checked against a list; Optuna itself accepts them.

It can go when tests/tuning/test_resume.py::test_killed_study_goes_on, with 1,000 s between saves, passes with `OptunaSearch`.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from kiloseg.storage.filesystems import open_folder
from kiloseg.tuning.ray_workarounds.state_files import SEARCHER, newest


class ResumableOptunaSearch(OptunaSearch):
    """Tune's searcher for Optuna, but results of trials that Optuna does not know or considers ended are ignored."""

    @property
    def study(self) -> optuna.Study:
        """The study as Optuna knows it."""
        study: optuna.Study = self._ot_study
        return study

    def hold(self, trial_id: str, trial: optuna.Trial) -> None:
        """Records which trial of Optuna a trial of Tune is, also in Optuna."""
        trial.set_user_attr("trial", trial_id)
        self._ot_trials[trial_id] = trial

    def trial(self, trial_id: str) -> optuna.Trial:
        """Returns the trial of Optuna that a trial of Tune is."""
        trial: optuna.Trial = self._ot_trials[trial_id]
        return trial

    def tell(self, trial_id: str, values: list[float] | None) -> None:
        """Ends a trial in Optuna with its values, or as pruned if it has none."""
        state = TrialState.PRUNED if values is None else TrialState.COMPLETE
        self.study.tell(self.trial(trial_id), values, state=state)
        self._completed_trials.add(trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Passes a result on if Optuna considers the trial running."""
        if self._is_under_way(trial_id):
            with warnings.catch_warnings():
                # A trial that starts again counts its results from 1 again; Optuna keeps the first, and no pruner reads them.
                warnings.filterwarnings("ignore", message="The reported value is ignored")
                super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passes the end of a trial on if Optuna considers the trial running."""
        if self._is_under_way(trial_id):
            super().on_trial_complete(trial_id, result, error)

    def _is_under_way(self, trial_id: str) -> bool:
        return trial_id in self._ot_trials and trial_id not in self._completed_trials


def saved_study(state: str) -> optuna.Study | None:
    """Returns the study as Optuna knew it when Tune last saved the searcher; None if Tune saved none.

    Tune works on copies of the searcher that it is given, so that only what it saved is complete.

    Args:
        state: the folder in which Ray saves the study's state, by path or URL.
    """
    place = open_folder(state)
    name = newest(place.entries(), SEARCHER)
    if name is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(place.read(name))
        searcher = ResumableOptunaSearch(space=_nothing, metric="none", mode="max")
        searcher.restore(str(file))
    return searcher.study


def _nothing(trial: Any) -> dict[str, Any]:
    return {}
