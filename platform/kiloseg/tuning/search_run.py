"""Runs the trials of a search in one or several parts: those of its start, and further ones of a resumption."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial
from ray.tune.search import Searcher

from kiloseg.data.description import read_info
from kiloseg.overrides import flatten
from kiloseg.tuning.earlier import start_from
from kiloseg.tuning.early_stopping import scheduler_of
from kiloseg.tuning.memory_budget import MemoryBudget, memory_budget
from kiloseg.tuning.objectives import OBJECTIVES
from kiloseg.tuning.ray_workarounds.asha_rungs import saved_rungs
from kiloseg.tuning.ray_workarounds.searcher import saved_study
from kiloseg.tuning.searcher import BudgetedSearcher, sampler_of
from kiloseg.tuning.shared_storage import shared_place
from kiloseg.tuning.shared_study import SharedStudy
from kiloseg.tuning.space import Space
from kiloseg.tuning.study import RunningStudy
from kiloseg.tuning.trial_row import TrialRow
from kiloseg.tuning.trials import run_trials

if TYPE_CHECKING:
    from kiloseg.tuning.search import Search

MORE = "more-"
"""Start of the names of the parts of a study that hold further trials of a resumption; the number of trials before follows."""


class SearchRun:
    """Runs the trials of a search.

    Args:
        study: how trials are run and settings chosen.
        space: the settings to vary, and the run that they vary.

    Raises:
        ValueError: the budget is none, or other drivers of a shared study search something else or need no further trials.
        ConnectionError: the database of a shared study does not answer.
    """

    def __init__(self, study: Search, space: Space) -> None:
        self.study = study
        self.space = space
        self.budget: MemoryBudget | None = memory_budget(
            study.budget, space.base, workers=study.workers, gpus_per_worker=study.gpus_per_worker
        )
        self.shared = None if study.share is None else self._shared(study.share)

    def _shared(self, share: str) -> SharedStudy:
        study = self.study
        place = shared_place(share, study.runs, study.name)
        shared = SharedStudy(place, OBJECTIVES[study.tradeoff], study.num_trials)
        if not study.resume:
            shared.check(self._plan())
            if not shared.num_free():
                raise ValueError(
                    f"--share: {place} has its {study.num_trials} trials already, of all drivers together; give a larger "
                    "--num-trials, or another name to --share for a new study"
                )
        return shared

    def _plan(self) -> dict[str, Any]:
        """Returns what all drivers of a shared study must have in common, or their results could not be compared."""
        searched = {dimension.name for dimension in self.space.dimensions}
        base = {name: value for name, value in flatten(self.space.base).items() if name not in searched}
        digest = read_info(self.space.base.data.path).digest
        return base | self.space.describe() | {
            "data digest": digest, "workers": self.study.workers, "tradeoff": self.study.tradeoff
        }  # fmt: skip

    def chooser(
        self, first: Sequence[Mapping[str, Any]] = (), known: Sequence[FrozenTrial] | None = None
    ) -> BudgetedSearcher:
        """Returns what chooses the settings of trials.

        Args:
            first: settings of the first trials.
            known: ended trials to learn from; None: those of the study to start from.
        """
        study = self.study
        objectives = OBJECTIVES[study.tradeoff]
        if known is None and study.start_from is not None:
            base = self.space.base
            start = start_from(study.start_from, study.runs, self.space, read_info(base.data.path).digest, objectives)
            print(start, flush=True)
            first, known = [*start.first, *first], start.known
        known = known or ()
        sampler = sampler_of(study, len(known))
        chooser = BudgetedSearcher(self.space, first, sampler, objectives=objectives, budget=self.budget, known=known)
        chooser.find_first()
        return chooser

    def trials(
        self, running: RunningStudy, chooser: BudgetedSearcher | None
    ) -> tuple[list[TrialRow], optuna.Study | None]:
        """Runs the trials of a study, or resumes it.

        Args:
            running: the study.
            chooser: chooses the settings; None: the study is resumed.

        Returns:
            Its trials, and the study as Optuna then knows it, with the trials of other drivers if it is shared.
        """
        if self.shared is not None:
            self.shared.join(running.study_id, self._plan())
        rows, sampled = self._resume(running) if chooser is None else self._run(running, chooser)
        self._settle(rows, sampled)
        return rows, sampled

    def _run(
        self, part: RunningStudy, chooser: BudgetedSearcher, num_trials: int = 0, rungs: dict[str, Any] | None = None
    ) -> tuple[list[TrialRow], optuna.Study | None]:
        """Runs new trials and returns them, and the study as Optuna then knows it.

        Args:
            part: the study, or the part of it that the trials belong to.
            chooser: chooses their settings.
            num_trials: how many trials; 0: as many as the study has.
            rungs: scores of earlier trials that ASHA compares these with.
        """
        if self.shared is not None:
            num_known = len(chooser.study.get_trials(deepcopy=False))
            chooser.share(self.shared, sampler_of(self.study, num_known, part.study_id))
        study = dataclasses.replace(self.study, resume=False)
        scheduler = scheduler_of(self.study, self.space)
        number = num_trials or self.study.num_trials
        rows = run_trials(
            part, study, self.space.base, None, number, lambda at_once: chooser, scheduler, tags={}, rungs=rungs
        )
        return rows, saved_study(part.state)

    def _resume(self, running: RunningStudy) -> tuple[list[TrialRow], optuna.Study | None]:
        """Ends the trials that an interruption left, then runs further ones until there are as many as the study has now."""
        rows: list[TrialRow] = []
        parts = [running, *(part for part in running.parts(MORE) if part.resumable)]
        for part in parts:
            scheduler = scheduler_of(self.study, self.space)
            # Tune continues with the searcher and the number of trials that it has saved.
            rows += run_trials(
                part, self.study, self.space.base, None, self.study.num_trials, _saved, scheduler, tags={}
            )
        sampled = saved_study(parts[-1].state)
        self._settle(rows, sampled)
        missing = self.study.num_trials - len(rows) if self.shared is None else self.shared.num_free()
        if missing <= 0 or sampled is None:
            return rows, sampled
        chooser = self.chooser(known=[trial for trial in sampled.get_trials() if trial.state.is_finished()])
        part = running.part(f"{MORE}{len(rows):06d}")
        added, sampled = self._run(part, chooser, missing, saved_rungs(parts[-1].state))
        return rows + added, sampled

    def _settle(self, rows: Sequence[TrialRow], sampled: optuna.Study | None) -> None:
        if self.shared is not None:
            self.shared.settle(rows, sampled)


def _saved(at_once: int) -> Searcher:
    raise AssertionError("a resumed study has a searcher already")
