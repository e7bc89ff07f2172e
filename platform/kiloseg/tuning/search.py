"""Runs a search: Optuna chooses the settings of trials, and trials that fall behind are stopped early."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.overrides import override
from kiloseg.tuning.identity import SPACE
from kiloseg.tuning.memory_budget import DEVICE, budget_gib, memory_budget
from kiloseg.tuning.objectives import OBJECTIVES, Tradeoff
from kiloseg.tuning.ray_workarounds.searcher import saved_study
from kiloseg.tuning.reports import STEP
from kiloseg.tuning.searcher import BudgetedSearcher, infeasible_trials
from kiloseg.tuning.space import Space
from kiloseg.tuning.study import Study, StudyResult, running_study
from kiloseg.tuning.trials import run_trials

INFEASIBLE = "infeasible_suggestions"
"""Metric of a study in MLflow: how many settings did not fit the memory budget and were not launched."""


@dataclass(frozen=True, kw_only=True)
class Search(Study):
    """The options of a search: how trials are run and how their settings are chosen."""

    num_trials: int = 8
    """Total number of trials, 1 or more."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget != DEVICE:
            budget_gib(self.budget)
        if self.num_trials < 1:
            raise ValueError(f"num_trials = {self.num_trials}: expected at least 1")
        if self.reduction < 2:
            raise ValueError(f"reduction = {self.reduction}: expected 2 or more")


@contextlib.contextmanager
def search(study: Search, space: Space, *, first: Sequence[Mapping[str, Any]], script: str) -> Iterator[StudyResult]:
    """Searches for the settings with the best mIoU; the result is the value of a `with` block.

    A trial that fails or runs out of memory is a row of the result like any other; settings that do not fit the budget are never
    a trial, and the result counts them. Files and runs that are added to the
    result inside the block belong to the study. The study ends when the block ends, even by an error.

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
    budget = memory_budget(study.budget, base, workers=study.workers, gpus_per_worker=study.gpus_per_worker)
    chooser = BudgetedSearcher(space, first, _sampler(study), objectives=OBJECTIVES[study.tradeoff], budget=budget)
    if not study.resume:
        chooser.find_first()

    def searcher(at_once: int) -> Searcher:
        return chooser

    plan = {SPACE: "optuna, by conditions", **space.describe()}
    plan |= {
        name: getattr(study, name)
        for name in ("num_trials", "seed", "early_stopping", "reduction", "budget", "tradeoff")
    }
    with running_study(study, base, plan, script=script, tags={}) as running:
        scheduler = _scheduler(study, base)
        rows = run_trials(running, study, base, None, study.num_trials, searcher, scheduler, tags={})
        sampled = saved_study(running.state)
        if sampled is not None:
            running.delivery.study.log_metrics({INFEASIBLE: len(infeasible_trials(sampled))}, step=0)
        yield running.result(rows, sampled)


def _sampler(study: Search) -> optuna.samplers.BaseSampler:
    # With the default of 10 random trials, a study of 8 would be a random search.
    return optuna.samplers.TPESampler(
        n_startup_trials=max(study.num_trials // 2, 1), constant_liar=True, seed=study.seed
    )


def _scheduler(study: Search, base: Config) -> TrialScheduler:
    if not study.early_stopping or study.tradeoff != "none" or not base.trainer.validate_every:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=STEP,  # Tune's own training_iteration restarts at 1 when a controller is restarted
        max_t=base.trainer.steps,
        grace_period=base.trainer.validate_every,
        reduction_factor=study.reduction,
    )
