"""Chooses the settings of a search's trials by Optuna; settings that do not fit a memory budget are never launched."""

from __future__ import annotations

import json
import logging
import warnings
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from kiloseg.tuning.callbacks.settings_text import value_text
from kiloseg.tuning.memory_budget import MemoryBudget
from kiloseg.tuning.objectives import MIOU, Objective, values_of
from kiloseg.tuning.ray_workarounds.searcher import ResumableOptunaSearch
from kiloseg.tuning.shared_study import SharedStudy
from kiloseg.tuning.shared_trials import FIRST
from kiloseg.tuning.space import Space

if TYPE_CHECKING:
    from kiloseg.tuning.search import Search

logger = logging.getLogger(__name__)

ATTEMPTS = 100
"""After this many settings in a row that do not fit the memory budget, a search has no further trials."""

MEMORY = "memory_gib"
"""Name of Optuna's constraint: the planned peak less the budget, in GiB. A trial is feasible at 0 or less."""
FAILED = "failed"
"""Name of the constraint that trials violate which failed or ran out of memory."""
PLANNED = "planned_gib"
"""Name of the attribute of a trial in Optuna that holds its planned peak in GiB."""


class BudgetedSearcher(ResumableOptunaSearch):
    """Chooses the settings of Tune's trials by Optuna, and plans their memory first if there is a budget.

    Settings that do not fit are a pruned trial in Optuna whose constraint is violated, from which samplers learn where not to
    look; they do not count as trials of the study.

    Args:
        space: chooses the settings of an Optuna trial.
        first: settings of the first trials; the sampler chooses those that are missing.
        sampler: chooses all other settings.
        objectives: what trials are compared by.
        budget: the memory that a trial may take; None: any.
        known: ended trials of Optuna from which the sampler learns.
    """

    shared: SharedStudy | None = None
    """The study that several drivers search together; None if this driver searches alone."""

    def __init__(
        self,
        space: Space,
        first: Sequence[Mapping[str, Any]],
        sampler: optuna.samplers.BaseSampler,
        *,
        objectives: Sequence[Objective] = (MIOU,),
        budget: MemoryBudget | None = None,
        known: Sequence[FrozenTrial] = (),
    ) -> None:
        names, modes = [each.name for each in objectives], [each.mode for each in objectives]
        several = len(objectives) > 1
        super().__init__(
            space=space, metric=names if several else names[0], mode=modes if several else modes[0], sampler=sampler
        )
        self.space = space
        self.objectives = tuple(objectives)
        self.budget = budget
        self._next: tuple[Trial, dict[str, Any]] | None = None
        self.study.add_trials(known)
        for values in first:
            self.study.enqueue_trial(dict(values), user_attrs={FIRST: json.dumps(dict(values), sort_keys=True)})

    def share(self, shared: SharedStudy, sampler: optuna.samplers.BaseSampler) -> None:
        """Searches together with other drivers, with a sampler that draws what no other driver draws."""
        self.shared = shared
        self.study.sampler = sampler
        if self._next is not None and FIRST not in self._frozen(self._next[0]).user_attrs:
            self.study.tell(self._next[0], state=TrialState.FAIL)  # drawn by a sampler that all drivers have
            self._next = None

    def find_first(self) -> None:
        """Chooses the settings of the first trial ahead of time, so that a budget that is too small ends no study.

        Raises:
            ValueError: no settings fit the budget.
        """
        self._next = self._find()
        if self._next is None:
            assert self.budget is not None
            least = min(trial.user_attrs[PLANNED] for trial in infeasible_trials(self.study))
            raise ValueError(
                f"--budget: none of {ATTEMPTS} settings fits {self.budget.gib:.4g} GiB; the smallest is planned at "
                f"{least:.4g} GiB. Give a larger budget, lower trainer.batch_size or data.crop, or search smaller models"
            )

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Returns the settings of the next trial by dotted names, or that there are no more."""
        found = self._chosen(trial_id)
        if found is None:
            return str(self.FINISHED)
        trial, settings = found
        self.hold(trial_id, trial)
        return settings

    def _chosen(self, trial_id: str) -> tuple[Trial, dict[str, Any]] | None:
        """Returns the settings of the next trial, which is no other driver's; None if there are no more."""
        while True:
            if self.shared is not None:
                self.shared.pull(self.study)
                if not self.shared.has_room():
                    return None
            found, self._next = self._next or self._find(), None
            if found is None:
                logger.warning("the search ends early: none of %d settings in a row fits the memory budget", ATTEMPTS)
                return None
            claim = "granted" if self.shared is None else self.shared.claim(trial_id, self._frozen(found[0]))
            if claim == "granted":
                return found
            self.study.tell(found[0], state=TrialState.FAIL)
            if claim == "full":
                return None

    def _frozen(self, trial: Trial) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[trial.number]

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells Optuna the values of an ended trial.

        Of several objectives, a trial that failed or ran out of memory has no values that could be compared, so that it counts
        as infeasible.
        """
        under_way = self._is_under_way(trial_id)
        self._end(trial_id, result, error)
        if self.shared is not None and under_way:
            self.shared.tell(trial_id, self._frozen(self.trial(trial_id)), result)

    def _end(self, trial_id: str, result: dict[str, Any] | None, error: bool) -> None:
        if len(self.objectives) == 1 or error or not self._is_under_way(trial_id):
            super().on_trial_complete(trial_id, result, error)
            return
        values = values_of(result, self.objectives)
        if values is None:
            self.trial(trial_id).set_constraint(FAILED, 1.0)
        self.tell(trial_id, values)

    def _find(self) -> tuple[Trial, dict[str, Any]] | None:
        """Asks Optuna for settings until they fit the budget; None if none of many do."""
        for _ in range(ATTEMPTS):
            trial = self.study.ask()
            settings = self.space(trial)
            if self._fits(trial, settings):
                return trial, settings
            self.study.tell(trial, state=TrialState.PRUNED)
        return None

    def _fits(self, trial: Trial, settings: Mapping[str, Any]) -> bool:
        planned = None if self.budget is None else self.budget.planned_gib(settings)
        if self.budget is None or planned is None:
            return True
        trial.set_user_attr(PLANNED, planned)
        trial.set_constraint(MEMORY, planned - self.budget.gib)
        if planned <= self.budget.gib:
            return True
        values = ", ".join(f"{name} {value_text(value)}" for name, value in settings.items())
        print(f"not run, planned at {planned:.4g} GiB of {self.budget.gib:.4g}: {values}", flush=True)
        return False


def infeasible_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns Optuna's trials whose settings did not fit the memory budget; none of them was launched."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.constraints.get(MEMORY, 0.0) > 0]


def sampler_of(study: Search, num_known: int = 0, driver: str = "") -> optuna.samplers.BaseSampler:
    """Returns the sampler that chooses the settings of a search's trials.

    Args:
        study: the search.
        num_known: how many trials have ended before it begins.
        driver: id of the driver's study if several drivers search together; each then draws other settings.
    """
    # With Optuna's default of 10 random trials, a study of 8 would be a random search. With the same seed, further trials of a
    # study would draw what its first ones drew.
    seed = (study.seed + num_known + zlib.crc32(driver.encode())) % 2**32
    # Settings are drawn together, since a learning rate is good at some temperature: on glyphs that came sooner to what 40 random
    # trials find (experiments/LOG.md). Of two objectives it finds the front no sooner. Groups are the settings of one condition.
    together = study.tradeoff == "none"
    with warnings.catch_warnings():  # groups have been called experimental for years
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=min(max(study.num_trials // 2, 1), 10),
            multivariate=together,
            group=together,
            constant_liar=True,
            seed=seed,
        )
