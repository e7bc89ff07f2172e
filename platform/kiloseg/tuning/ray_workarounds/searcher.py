"""Optuna hears only of the trials that it knows and that have not ended for it.

Seen on Ray 2.60: Tune saves its own state and the searcher's at different moments. After a resumption Tune may report results of
a trial that Optuna was told had ended (it had failed), or that Optuna does not know (it began between the two savings, right
before a death). Both raise, and end the study. Nor does Tune take trials to begin with where the space is a function, unless their
names are checked against a list; Optuna itself does.

It can go when tests/tuning/test_resume.py::test_killed_study_goes_on, at 1,000 s between savings, passes with `OptunaSearch`.
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
    """Optuna as what chooses the settings of Tune's trials.

    Args:
        space: chooses the settings of an Optuna trial; picklable.
        first: settings of the first trials; what is missing in one the sampler chooses.
        sampler: chooses the others.
        metric: what is to become high.
    """
    searcher = ResumableOptunaSearch(space=space, metric=metric, mode="max", sampler=sampler)
    for values in first:
        searcher._ot_study.enqueue_trial(dict(values))
    return searcher


class ResumableOptunaSearch(OptunaSearch):
    """Optuna as a searcher of Tune that ignores trials it does not know or that have ended for it."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Passes on a result of a trial that is under way for Optuna."""
        if self._is_under_way(trial_id):
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Passes on the end of a trial that is under way for Optuna."""
        if self._is_under_way(trial_id):
            super().on_trial_complete(trial_id, result, error)

    def _is_under_way(self, trial_id: str) -> bool:
        return trial_id in self._ot_trials and trial_id not in self._completed_trials
