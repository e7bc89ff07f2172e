"""Runs a search: Optuna chooses the settings of trials, and trials that fall behind are stopped early."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.memory import parse_gib
from kiloseg.overrides import override
from kiloseg.tuning.cluster import Resources, gpu_share
from kiloseg.tuning.confirmation import Confirmation, confirmations, points_to_repeat
from kiloseg.tuning.earlier import start_from
from kiloseg.tuning.grid import complete_points, run_points
from kiloseg.tuning.identity import SPACE, TRIALS
from kiloseg.tuning.memory_budget import DEVICE, MemoryBudget, budget_gib, memory_budget, trials_per_gpu
from kiloseg.tuning.objectives import OBJECTIVES, Tradeoff
from kiloseg.tuning.ranking import best_rows
from kiloseg.tuning.ray_workarounds.asha_rungs import saved_rungs
from kiloseg.tuning.ray_workarounds.searcher import saved_study
from kiloseg.tuning.reports import STEP
from kiloseg.tuning.searcher import BudgetedSearcher, infeasible_trials
from kiloseg.tuning.space import Space
from kiloseg.tuning.study import RunningStudy, Study, StudyResult, running_study
from kiloseg.tuning.trial_row import TrialRow
from kiloseg.tuning.trials import run_trials

INFEASIBLE = "infeasible_suggestions"
"""Metric of a study in MLflow: how many settings did not fit the memory budget and were not launched."""


WARMUP = "optimizer.warmup_steps"
MORE = "more-"
"""Start of the names of the parts of a study that hold further trials of a resumption; the number of trials before follows."""


@dataclass(frozen=True, kw_only=True)
class Search(Study):
    """The options of a search: how trials are run and how their settings are chosen."""

    num_trials: int = 8
    """Total number of trials, 1 or more. With resume it may be larger than before: an ended study then gets further trials."""
    seed: int = 0
    """Seed of Optuna's sampler."""
    early_stopping: bool = True
    """Whether to stop trials that fall behind at a validation (ASHA)."""
    tradeoff: Tradeoff = "none"
    """What to trade mIoU against. memory: the search looks for the best mIoU at every peak memory of a training step. time:
    the same for training time per image. none: for the best mIoU alone. With a tradeoff no trial is stopped early, since one
    that is behind in mIoU may be ahead in the other."""
    reduction: int = 3
    """At each rung of ASHA, the best 1 in this many trials continues; 2 or more."""

    budget: str = DEVICE
    """Memory of a training process, such as 12GiB: settings that are planned to need more are never launched. device: nine
    tenths of the memory of this machine's GPU, and no limit where there is none."""
    pack: str | None = None
    """Memory of a GPU of the cluster, of the smallest if they differ, such as 80GiB; device: that of this machine's GPU. As many
    trials then share a GPU as `budget` allows, which must be an amount: plans take nine tenths of a GPU. None: trials share no
    GPU."""
    best_under: str | None = None
    """The best trials are those with the highest mIoU among trials whose training and validation needed at most this memory,
    such as 12GiB. None: among all."""
    confirm: int = 0
    """How many of the best trials to train again at the end, each with `confirm_seeds` other seeds, so that the winner is not the
    luckiest trial. 0: none."""
    confirm_seeds: int = 3
    """How many times to train each of them, 1 or more."""
    start_from: str | None = None
    """Name or id of an earlier study. Its results are known to the search if they were made with the same data and settings; if
    not, its best settings are tried first."""

    def __post_init__(self) -> None:
        if self.pack is not None and self.gpus_per_worker is not None:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker}, pack = {self.pack!r}: expected one of them, since both say how many "
                "trials share a GPU"
            )
        super().__post_init__()
        if self.budget != DEVICE:
            budget_gib(self.budget)
        if self.num_trials < 1:
            raise ValueError(f"num_trials = {self.num_trials}: expected at least 1")
        if self.confirm < 0 or self.confirm_seeds < 1:
            raise ValueError(
                f"confirm = {self.confirm}, confirm_seeds = {self.confirm_seeds}: expected 0 or more trials and 1 or more seeds"
            )
        _ = self.within_gib
        if self.reduction < 2:
            raise ValueError(f"reduction = {self.reduction}: expected 2 or more")

    @property
    def within_gib(self) -> float | None:
        """The memory of `best_under` in GiB.

        Raises:
            ValueError: it is no amount.
        """
        return None if self.best_under is None else parse_gib(self.best_under, "--best-under")

    def resources(self, *, has_gpu: bool) -> Resources:
        """Returns the share of a cluster that each trial gets; with `pack`, the share of a GPU that the budget allows."""
        if self.pack is None:
            return super().resources(has_gpu=has_gpu)
        share = gpu_share(trials_per_gpu(self.pack, self.budget))
        return Resources(workers=self.workers, cpus_per_worker=self.cpus_per_worker, gpus_per_worker=share)


@contextlib.contextmanager
def search(study: Search, space: Space, *, first: Sequence[Mapping[str, Any]], script: str) -> Iterator[StudyResult]:
    """Searches for the settings with the best mIoU; the result is the value of a `with` block.

    A trial that fails or runs out of memory is a row of the result like any other; settings that do not fit the budget are never
    a trial, and the result counts them. Files and runs that are added to the result inside the block belong to the study. The
    study ends when the block ends, even by an error.

    Args:
        study: how trials are run and settings chosen.
        space: the settings to vary, and the run that they vary: paths must be absolute, and `trainer.validate_every` sets the
            rungs of ASHA.
        first: settings of the first trials, by dotted names; the sampler chooses those that are missing.
        script: name of the script that started the study, for MLflow.

    Raises:
        ValueError: a setting or value in `space` or `first` is impossible, there is nothing to resume, the study to resume has
            another plan, runs are at a URL and there is no MLflow server, or no settings fit the budget.
        ConnectionError: MLflow cannot be reached.
        StudyRunningError: another process runs the study to resume.
    """
    base = space.base
    space.check(base.data.num_classes or read_info(base.data.path).num_classes)
    for values in first:
        override(base, space.required(values) | dict(values))

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # of its trials the console of the study says more
    running_search = _Search(study, space)
    chooser = None if study.resume else running_search.chooser(first)
    plan = {SPACE: "optuna, by conditions", **space.describe()}
    plan |= {
        name: getattr(study, name)
        for name in (TRIALS, "seed", "early_stopping", "reduction", "budget", "tradeoff", "pack")
    }
    with running_study(study, base, plan, script=script, tags={}) as running:
        rows, sampled = running_search.resume(running) if chooser is None else running_search.run(running, chooser)
        if sampled is not None:
            running.delivery.study.log_metrics({INFEASIBLE: len(infeasible_trials(sampled))}, step=0)
        yield running.result(rows, sampled, _confirmed(running, study, base, rows))


class _Search:
    """Runs the trials of a search in one or several parts: those of its start, and further ones of a resumption."""

    def __init__(self, study: Search, space: Space) -> None:
        self.study = study
        self.space = space
        self.budget: MemoryBudget | None = memory_budget(
            study.budget, space.base, workers=study.workers, gpus_per_worker=study.gpus_per_worker
        )

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

    def run(
        self, part: RunningStudy, chooser: BudgetedSearcher, num_trials: int = 0, rungs: dict[str, Any] | None = None
    ) -> tuple[list[TrialRow], optuna.Study | None]:
        """Runs new trials and returns them, and the study as Optuna then knows it.

        Args:
            part: the study, or the part of it that the trials belong to.
            chooser: chooses their settings.
            num_trials: how many trials; 0: as many as the study has.
            rungs: scores of earlier trials that ASHA compares these with.
        """
        study = dataclasses.replace(self.study, resume=False)
        scheduler = scheduler_of(self.study, self.space)
        number = num_trials or self.study.num_trials
        rows = run_trials(
            part, study, self.space.base, None, number, lambda at_once: chooser, scheduler, tags={}, rungs=rungs
        )
        return rows, saved_study(part.state)

    def resume(self, running: RunningStudy) -> tuple[list[TrialRow], optuna.Study | None]:
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
        missing = self.study.num_trials - len(rows)
        if missing <= 0 or sampled is None:
            return rows, sampled
        chooser = self.chooser(known=[trial for trial in sampled.get_trials() if trial.state.is_finished()])
        part = running.part(f"{MORE}{len(rows):06d}")
        added, sampled = self.run(part, chooser, missing, saved_rungs(parts[-1].state))
        return rows + added, sampled


def _saved(at_once: int) -> Searcher:
    raise AssertionError("a resumed study has a searcher already")


def _confirmed(running: RunningStudy, study: Search, base: Config, rows: Sequence[TrialRow]) -> list[Confirmation]:
    """Trains the best trials again with other seeds, and returns them, the best on average first."""
    complete = [row for row in rows if row.outcome == "finished"]
    best = best_rows(complete, study.within_gib)[: study.confirm]
    if not best:
        return []
    seeds = [base.trainer.seed + 1 + number for number in range(study.confirm_seeds)]
    points = complete_points(base, points_to_repeat(best, seeds))
    digest = hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()[:8]
    part = running.part(f"seeds-{digest}")
    resumed = dataclasses.replace(study, resume=study.resume and part.resumable)
    tags = {"repeats": ", ".join(row.trial for row in best)}
    return confirmations(best, run_points(part, resumed, base, points, tags=tags))


def sampler_of(study: Search, num_known: int = 0) -> optuna.samplers.BaseSampler:
    """Returns the sampler that chooses the settings of a search's trials, `num_known` of which have ended before it begins."""
    # With the default of 10 random trials, a study of 8 would be a random search. With the same seed, further trials of a study
    # would draw what its first ones drew.
    return optuna.samplers.TPESampler(
        n_startup_trials=max(study.num_trials // 2, 1), constant_liar=True, seed=study.seed + num_known
    )


def scheduler_of(study: Search, space: Space) -> TrialScheduler:
    """Returns the scheduler that stops a search's trials early, or one that stops none if the search does not want that."""
    trainer = space.base.trainer
    first_rung = _first_rung(space)
    if not study.early_stopping or study.tradeoff != "none" or not 0 < first_rung < trainer.steps:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=STEP,  # Tune's own training_iteration restarts at 1 when a controller is restarted
        max_t=trainer.steps,
        grace_period=first_rung,
        reduction_factor=study.reduction,
    )


def _first_rung(space: Space) -> int:
    """Returns the step of the first validation after the warm-up of every trial; 0 if there are no validations on the way.

    Before, the learning rates of trials differ from those that were chosen, and so does what their mIoU says.
    """
    every = space.base.trainer.validate_every
    searched = [edge for each in space.dimensions if each.name == WARMUP for edge in each.edges]
    warmup = max(searched or [space.base.optimizer.warmup_steps])
    return every * max(-(-warmup // every), 1) if every else 0
