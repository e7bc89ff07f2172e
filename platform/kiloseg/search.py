"""A study: many trials on Ray Tune, either a search (settings chosen by Optuna, bad ones stopped early) or a grid."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune import FailureConfig, ResultGrid, RunConfig, TuneConfig
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from kiloseg.cluster import PACKAGE, check_kept, concurrency, start_ray, trial_resources
from kiloseg.config import Config, flatten, override
from kiloseg.data.shards import read_info
from kiloseg.progress import Progress
from kiloseg.recorder import Recorder
from kiloseg.reporter import FAILED_OUTCOMES, METRIC, STEP, outcome_of
from kiloseg.summary import TrialRow
from kiloseg.tracking import TrackedRun, Tracker, source_tags
from kiloseg.trial import TrialSettings, run_trial


@dataclass(frozen=True, kw_only=True)
class Study:
    """How a search is run."""

    name: str
    """Name of the experiment in MLflow and of the study's folder."""
    num_trials: int = 8
    """Trials in all."""
    max_concurrent: int = 0
    """Trials at once. 0: as many as there are GPUs (or CPUs where there is no GPU) for."""
    seed: int = 0
    """Of the sampler."""
    early_stopping: bool = True
    """Stop trials that fall behind at a validation (ASHA)."""
    reduction: int = 3
    """One trial in so many goes on at each rung of ASHA."""
    workers: int = 1
    """Training processes a trial, each on a GPU of its own where there is one."""
    cpus_per_worker: float = 1.0
    """CPU cores a training process gets."""
    gpus_per_worker: float | None = None
    """GPUs a training process gets. None: 1 where the cluster has any when the study starts, else 0. Where workers are started
    when they are asked for say 1, and max_concurrent as well."""
    runs: str = "runs"
    """Folder for results; on a cluster one that all nodes see."""
    resume: bool = False
    """Go on with the newest study of this name instead of starting one."""

    def __post_init__(self) -> None:
        if "@" in self.runs.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "runs: expected a URL without user and password, since settings are logged; give them in the environment"
            )
        if self.num_trials < 1:
            raise ValueError(f"num_trials = {self.num_trials}: expected at least 1")
        if self.max_concurrent < 0:
            raise ValueError(f"max_concurrent = {self.max_concurrent}: expected 1 or more, or 0 for as many as fit")
        if self.reduction < 2:
            raise ValueError(f"reduction = {self.reduction}: expected 2 or more")
        if not self.name or set(self.name) & set("/\\'\""):
            raise ValueError(f"name = {self.name!r}: expected a word without slashes and quotes")


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study that has ended."""

    rows: list[TrialRow]
    run: TrackedRun
    """Its parent run."""
    folder: Path
    seconds: float


def search(
    study: Study, base: Config, space: Mapping[str, Any], *, first: list[dict[str, Any]], script: str
) -> StudyResult:
    """Runs the study to its end. A trial that fails or runs out of memory is a row of the result like any other.

    Args:
        study: how.
        base: the run that trials vary; paths must be absolute and `trainer.validate_every` sets the rungs of ASHA.
        space: Tune domains by dotted names of settings.
        first: settings to try before the sampler chooses, each a value for every name of `space`.
        script: what started it, for MLflow.

    Raises:
        ValueError: a name in `space` that is no setting, or nothing to resume.
        ConnectionError: MLflow cannot be reached.
    """
    for values in first:
        override(base, values)
    unknown = space.keys() - flatten(base).keys()
    if unknown:
        raise ValueError(
            f"no setting is called {', '.join(sorted(unknown))}; the settings are: {', '.join(flatten(base))}"
        )
    searcher = OptunaSearch(sampler=_sampler(study), points_to_evaluate=first)
    return _run(study, base, space, searcher, _scheduler(study, base), script=script, tags={})


def run_grid(
    study: Study,
    base: Config,
    points: Sequence[Mapping[str, Any]],
    *,
    script: str,
    tags: Mapping[str, str],
) -> StudyResult:
    """Runs a trial at each of `points`, all to their end; `num_trials`, `seed` and early stopping of `study` play no part.

    Args:
        study: how.
        base: the run that trials vary; paths must be absolute.
        points: settings of each trial by dotted names; without any there is a study's run, and nothing in it.
        script: what started it, for MLflow.
        tags: of the study's run and of every trial's, for MLflow.

    Raises:
        ValueError: a name that is no setting or a value it cannot have, or nothing to resume.
        ConnectionError: MLflow cannot be reached.
    """
    for values in points:
        override(base, values)
    if not points:
        study_id, run = _begin(study, base, script, tags)
        return StudyResult(rows=[], run=run, folder=Path(study.runs).resolve() / "studies" / study_id, seconds=0.0)
    study = replace(study, num_trials=len(points), early_stopping=False)
    # Tune wants a value for every name of its space at every point, and the names in its space.
    names = dict.fromkeys(name for values in points for name in values)
    defaults = flatten(base)
    complete = [{name: values.get(name, defaults[name]) for name in names} for values in points]
    searcher = BasicVariantGenerator(points_to_evaluate=complete)
    return _run(study, base, dict.fromkeys(names), searcher, FIFOScheduler(), script=script, tags=tags)


def _run(
    study: Study,
    base: Config,
    space: Mapping[str, Any],
    searcher: Searcher | SearchAlgorithm,
    scheduler: TrialScheduler,
    *,
    script: str,
    tags: Mapping[str, str],
) -> StudyResult:
    begin = time.perf_counter()
    study_id, run = _begin(study, base, script, tags)
    runs = Path(study.runs).resolve()
    check_kept(runs)
    storage = runs / "ray"
    # Of Tune's own loggers only the one that results are read back from; TensorBoard's cannot take a history.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    start_ray()
    resources = trial_resources(study.workers, study.cpus_per_worker, study.gpus_per_worker)
    settings = TrialSettings(base=base, storage=str(storage / study_id / "train"), resources=resources)
    # A trial's own bundle must be free of CPUs and GPUs: its Ray Train workers reserve those in a placement group of their
    # own, and trials that held a CPU while waiting for their workers' would block each other for ever.
    trainable = tune.with_resources(functools.partial(run_trial, settings=settings), {"memory": 64 * 2**20})
    callbacks = [JsonLoggerCallback(), Recorder(run, base, tags), Progress(study.num_trials, base.trainer.steps)]
    try:
        if study.resume:
            tuner = tune.Tuner.restore(
                str(storage / study_id), trainable, param_space=dict(space), restart_errored=True
            )
        else:
            tuner = tune.Tuner(
                trainable,
                param_space=dict(space),
                tune_config=TuneConfig(
                    metric=METRIC,
                    mode="max",
                    num_samples=study.num_trials,
                    max_concurrent_trials=study.max_concurrent or concurrency(resources),
                    search_alg=searcher,
                    scheduler=scheduler,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=RunConfig(
                    name=study_id,
                    storage_path=str(storage),
                    failure_config=FailureConfig(max_failures=2),
                    callbacks=callbacks,
                    verbose=0,  # its tables fill the screen; Progress prints a line a report
                ),
            )
        grid = tuner.fit()
    except BaseException:
        run.end("FAILED")
        raise
    return StudyResult(
        rows=_rows(grid, base), run=run, folder=runs / "studies" / study_id, seconds=time.perf_counter() - begin
    )


def _begin(study: Study, base: Config, script: str, tags: Mapping[str, str]) -> tuple[str, TrackedRun]:
    """The study's id, and its run in MLflow: new ones, or those of the study to resume."""
    runs = Path(study.runs).resolve()
    now = time.strftime("%Y%m%d-%H%M%S")
    study_id = _newest(runs / "ray", study.name) if study.resume else f"{study.name}-{now}"
    info = read_info(base.data.path)
    tracker = Tracker.open(study.name, runs)
    run = tracker.study_run(study_id, flatten(base), source_tags(PACKAGE.parents[1], script))
    run.log_dataset(info.name, info.digest, base.data.path)
    run.set_tags({f"study.{name}": str(value) for name, value in asdict(study).items()} | dict(tags))
    return study_id, run


def _newest(storage: Path, name: str) -> str:
    found = sorted(path.name for path in storage.glob(f"{name}-*") if tune.Tuner.can_restore(str(path)))
    if not found:
        raise ValueError(f"no study of the name {name!r} to resume in {storage}; start one without --resume")
    return found[-1]


def _sampler(study: Study) -> optuna.samplers.BaseSampler:
    # The default of 10 random trials would make a study of 8 a random search.
    return optuna.samplers.TPESampler(
        n_startup_trials=max(study.num_trials // 2, 1), constant_liar=True, seed=study.seed
    )


def _scheduler(study: Study, base: Config) -> TrialScheduler:
    if not study.early_stopping or not base.trainer.validate_every:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=STEP,  # Tune's own training_iteration starts again at 1 when a controller is restarted
        max_t=base.trainer.steps,
        grace_period=base.trainer.validate_every,
        reduction_factor=study.reduction,
    )


def _trial_name(trial: Trial) -> str:
    return trial.trial_id


def _rows(grid: ResultGrid, base: Config) -> list[TrialRow]:
    rows = []
    for index in range(len(grid)):
        result = grid[index]
        last = result.metrics or {}
        history = result.metrics_dataframe
        outcome = "failed" if result.error else outcome_of(last, base.trainer.steps)
        scored = None
        if outcome not in FAILED_OUTCOMES and history is not None and METRIC in history:
            scored = history.loc[history[METRIC].idxmax()]
        rows.append(
            TrialRow(
                trial=Path(result.path).name,
                outcome=outcome,
                overrides=dict(result.config or {}),
                miou=None if scored is None else float(scored[METRIC]),
                last_miou=None if scored is None else float(last[METRIC]),
                step=int(last.get(STEP, 0)),
                peak_memory_gib=last.get("peak_memory_gib"),
                val_peak_memory_gib=last.get("val/peak_memory_gib"),
                images_per_s=last.get("train/images_per_s"),
                seconds=float(last.get("time_total_s", 0.0)),
                train_seconds=float(last.get("train_s", 0.0)),
                error=str(result.error or last.get("error", "")),
                checkpoint=None if scored is None else scored.get("checkpoint_path"),
            )
        )
    return rows
