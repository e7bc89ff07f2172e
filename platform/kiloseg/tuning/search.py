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

from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.memory import parse_gib
from kiloseg.overrides import override
from kiloseg.storage.filesystems import inside, open_folder
from kiloseg.tuning.cluster import Resources, gpu_share
from kiloseg.tuning.confirmation import Confirmation, confirmations, points_to_repeat
from kiloseg.tuning.continuation import STEPS, begun_steps, continued
from kiloseg.tuning.grid import complete_points, run_points
from kiloseg.tuning.identity import SPACE, TRIALS, idle_id, newest_id, read_plan
from kiloseg.tuning.memory_budget import DEVICE, budget_gib, trials_per_gpu
from kiloseg.tuning.objectives import Tradeoff
from kiloseg.tuning.ranking import best_rows
from kiloseg.tuning.search_run import SearchRun
from kiloseg.tuning.searcher import infeasible_trials
from kiloseg.tuning.shared_result import shared_result
from kiloseg.tuning.shared_storage import check_share
from kiloseg.tuning.space import Space
from kiloseg.tuning.study import RunningStudy, Study, StudyResult, running_study
from kiloseg.tuning.trial_row import TrialRow

INFEASIBLE = "infeasible_suggestions"
"""Metric of a study in MLflow: how many settings did not fit the memory budget and were not launched."""


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
    continue_best: int = 0
    """With resume and more `trainer.steps` than before: how many of the finished trials go on to these, those with the highest
    mIoU. 0: all that finished."""
    share: str | None = None
    """Where several drivers meet that search together, each started with the same command: a word, for a journal in the folder of
    results, which all of them see; or the URL of a database, such as postgresql+psycopg2://HOST/DATABASE#NAME. `num_trials` is
    then the number of trials of all drivers together; early stopping and `confirm` compare this driver's trials alone. None: this
    driver searches alone."""
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
        if self.continue_best < 0:
            raise ValueError(f"continue_best = {self.continue_best}: expected 0 or more")
        if self.share is not None:
            check_share(self.share)
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
            another plan, runs are at a URL and there is no MLflow server, no settings fit the budget, or other drivers of a shared
            study search something else or need no further trials.
        ConnectionError: MLflow, or the database of a shared study, cannot be reached.
        StudyRunningError: another process runs the study to resume.
    """
    base = space.base
    space.check(base.data.num_classes or read_info(base.data.path).num_classes)
    for values in first:
        override(base, space.required(values) | dict(values))

    longer, study_id = base, None
    if study.continue_best and not study.resume:
        raise ValueError(
            f"--continue-best {study.continue_best}: expected only with --resume, and more trainer.steps than before"
        )
    if study.resume:
        study_id, steps = _begun(study, space)
        base = override(base, {STEPS: steps})
        space = dataclasses.replace(space, base=base)

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # of its trials the console of the study says more
    run = SearchRun(study, space)
    chooser = None if study.resume else run.chooser(first)
    plan = {SPACE: "optuna, by conditions", **space.describe()}
    plan |= {
        name: getattr(study, name)
        for name in (TRIALS, "seed", "early_stopping", "reduction", "budget", "tradeoff", "pack", "share")
    }
    with running_study(study, base, plan, script=script, tags={}, study_id=study_id) as running:
        rows, sampled = run.trials(running, chooser)
        if sampled is not None:
            running.delivery.study.log_metrics({INFEASIBLE: len(infeasible_trials(sampled))}, step=0)
        if study.resume:
            rows = continued(running, study, longer, rows, best=study.continue_best)
        confirmed = _confirmed(running, study, longer, rows)
        shared = None if run.shared is None else shared_result(run.shared, space, study.within_gib)
        if shared is not None:
            running.delivery.study.set_tags(shared.tags())
        yield running.result(rows, sampled, confirmed, shared)


def _begun(study: Search, space: Space) -> tuple[str, int]:
    """Returns the id of the study to resume, and the number of steps that its trials were begun with.

    Raises:
        ValueError: there is no such study, or no trial of it can have the number of steps that is asked for.
    """
    runs = open_folder(study.runs).location
    study_id = newest_id(inside(runs, "ray"), study.name) if study.share is None else idle_id(runs, study.name)
    place = open_folder(inside(runs, f"studies/{study_id}"))
    steps = begun_steps(read_plan(place), place, space.base.trainer.steps)
    if steps < space.base.trainer.steps and STEPS in {each.name for each in space.dimensions}:
        raise ValueError(
            f"{STEPS} is searched, so that no trial of {study_id} goes on to more; resume with its own steps"
        )
    return study_id, steps


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
