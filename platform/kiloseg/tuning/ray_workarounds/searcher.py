"""Passes results to Optuna only for trials that Optuna knows and that it does not consider ended.

Seen on Ray 2.60: Tune saves its own state and the searcher's at different moments. In a resumed study, Tune may report results of
a trial that Optuna considers ended (because it failed), or that Optuna does not know (because it began between the two saves,
right before a crash). Both raise an error that ends the study. In addition, if the space is a function, Tune does not accept
settings for the first trials unless their names are checked against a list; Optuna itself accepts them.

It can go when tests/tuning/test_resume.py::test_killed_study_goes_on, with 1,000 s between saves, passes with `OptunaSearch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from ray.tune.search.optuna import OptunaSearch


def chosen_by_optuna(
    space: Callable[[Any], dict[str, Any]],
    first: Sequence[Mapping[str, Any]],
    sampler: optuna.samplers.BaseSampler,
    metric: str,
) -> ResumableOptunaSearch:
    """Returns a searcher with which Optuna chooses the settings of Tune's trials.

    Args:
        space: function that chooses the settings of an Optuna trial; picklable.
        first: settings of the first trials; the sampler chooses those that are missing.
        sampler: chooses all other settings.
        metric: name of the metric to maximize.
    """
    searcher = ResumableOptunaSearch(space=space, metric=metric, mode="max", sampler=sampler)
    for values in first:
        searcher._ot_study.enqueue_trial(dict(values))
    return searcher


class ResumableOptunaSearch(OptunaSearch):
    """Tune's searcher for Optuna, but results of trials that Optuna does not know or considers ended are ignored."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Passes a result on if Optuna considers the trial running."""
        if self._is_under_way(trial_id):
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passes the end of a trial on if Optuna considers the trial running."""
        if self._is_under_way(trial_id):
            super().on_trial_complete(trial_id, result, error)

    def _is_under_way(self, trial_id: str) -> bool:
        return trial_id in self._ot_trials and trial_id not in self._completed_trials
