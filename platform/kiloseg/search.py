"""A study: many trials on Ray Tune, settings chosen by Optuna, bad ones stopped early."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune import FailureConfig, ResultGrid, RunConfig, TuneConfig
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from kiloseg.config import Config, flatten, override
from kiloseg.data.shards import read_info
from kiloseg.summary import TrialRow, iou_table
from kiloseg.tracking import TrackedRun, Tracker, source_tags
from kiloseg.trial import (
    HISTORY,
    IOU_PER_CLASS,
    METRIC,
    STEP,
    WORKER_ENVIRONMENT,
    Resources,
    TrialSettings,
    run_trial,
)

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent
FAILED_OUTCOMES = ("oom", "diverged", "refused", "failed")


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
    runs: str = "runs"
    """Folder for results; on a cluster one that all nodes see."""
    resume: bool = False
    """Go on with the newest study of this name instead of starting one."""

    def __post_init__(self) -> None:
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
    runs = Path(study.runs).resolve()
    storage = runs / "ray"
    study_id = _newest(storage, study.name) if study.resume else f"{study.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    begin = time.perf_counter()

    info = read_info(base.data.path)
    tracker = Tracker.open(study.name, runs)
    run = tracker.study_run(study_id, flatten(base), source_tags(PACKAGE.parents[1], script))
    run.log_dataset(info.name, info.digest, base.data.path)
    run.set_tags({f"study.{name}": str(value) for name, value in asdict(study).items()})

    # Of Tune's own loggers only the one that results are read back from; TensorBoard's cannot take a history.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    start_ray()
    resources = trial_resources(study)
    settings = TrialSettings(base=base, storage=str(storage / study_id / "train"), resources=resources)
    # A trial's own bundle must be free of CPUs and GPUs: its Ray Train workers reserve those in a placement group of their
    # own, and trials that held a CPU while waiting for their workers' would block each other for ever.
    trainable = tune.with_resources(functools.partial(run_trial, settings=settings), {"memory": 64 * 2**20})
    callbacks = [JsonLoggerCallback(), _Tracking(run, base), _Progress(study.num_trials, base.trainer.steps)]
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
                    search_alg=OptunaSearch(sampler=_sampler(study), points_to_evaluate=first),
                    scheduler=_scheduler(study, base),
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=RunConfig(
                    name=study_id,
                    storage_path=str(storage),
                    failure_config=FailureConfig(max_failures=2),
                    callbacks=callbacks,
                    verbose=0,  # its tables fill the screen; _Progress prints a line a report
                ),
            )
        grid = tuner.fit()
    except BaseException:
        run.end("FAILED")
        raise
    return StudyResult(
        rows=_rows(grid, base), run=run, folder=runs / "studies" / study_id, seconds=time.perf_counter() - begin
    )


def start_ray() -> None:
    """Connects to the cluster that RAY_ADDRESS names, else starts a local one on loopback."""
    if ray.is_initialized():
        return
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Workers import the code of this checkout, not one that happens to be installed where they run.
    runtime_env = {"py_modules": [str(PACKAGE)], "env_vars": dict(WORKER_ENVIRONMENT)}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=runtime_env, logging_level=logging.WARNING)
        return
    # The dashboard serves the state API by which Train frees what a stopped trial held; without it a study hangs.
    ray.init(
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
        log_to_driver=False,
    )


def trial_resources(study: Study) -> Resources:
    """A GPU for each worker where the cluster has any, else CPU cores only."""
    gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    return Resources(workers=study.workers, cpus_per_worker=study.cpus_per_worker, gpus_per_worker=gpus)


def concurrency(resources: Resources) -> int:
    """How many trials the cluster has room for at once.

    Raises:
        ValueError: none at all.
    """
    cluster = ray.cluster_resources()
    needs = {"CPU": resources.cpus_per_worker * resources.workers, "GPU": resources.gpus_per_worker * resources.workers}
    fitting = min(int(cluster.get(name, 0) // need) for name, need in needs.items() if need)
    if fitting < 1:
        raise ValueError(
            f"a trial needs {needs}, the cluster has {cluster.get('CPU', 0)} CPUs and {cluster.get('GPU', 0)} GPUs"
        )
    return fitting


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


class _Tracking(tune.Callback):
    """Writes every trial's numbers to its MLflow run. One writer for all trials; trials know nothing of MLflow."""

    def __init__(self, study: TrackedRun, base: Config) -> None:
        self.study = study
        self.base = base
        self.runs: dict[str, TrackedRun] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._write(trial, lambda run: None)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        def write(run: TrackedRun) -> None:
            for report in result[HISTORY]:
                run.log_metrics({name: value for name, value in report.items() if name != STEP}, step=report[STEP])
            run.set_tags(
                {name: str(result[name]) for name in ("outcome", "error", "peak_memory_kind") if name in result}
            )
            run.log_metrics({"oom": result["oom"]}, step=result[STEP])
            if IOU_PER_CLASS in result:
                data = override(self.base, trial.config).data
                run.log_table(iou_table(data, result[IOU_PER_CLASS]), "iou_per_class.json")

        self._write(trial, write)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        outcome = _outcome(trial.last_result or {}, self.base.trainer.steps)
        self._end(trial, outcome, "FAILED" if outcome in FAILED_OUTCOMES else "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial, "failed", "FAILED")

    def _end(self, trial: Trial, outcome: str, status: str) -> None:
        def end(run: TrackedRun) -> None:
            run.set_tags({"outcome": outcome})
            run.end(status)

        self._write(trial, end)

    def _write(self, trial: Trial, action: Callable[[TrackedRun], None]) -> None:
        """Tracking that fails costs its own numbers only: the study goes on, and Ray's results hold them as well."""
        try:
            if trial.trial_id not in self.runs:
                params = flatten(self.base) | trial.config
                self.runs[trial.trial_id] = self.study.tracker.trial_run(self.study, trial.trial_id, params, {})
            action(self.runs[trial.trial_id])
        except Exception as error:
            logger.warning("MLflow did not take numbers of trial %s (%s); the study goes on", trial.trial_id, error)


class _Progress(tune.Callback):
    """Prints a line for each trial that starts, reports a validation, or ends."""

    def __init__(self, num_trials: int, steps: int) -> None:
        self.num_trials = num_trials
        self.steps = steps
        self.began = time.time()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        settings = " ".join(f"{name.rpartition('.')[2]}={_short(value)}" for name, value in trial.config.items())
        self._print(trial, f"starts ({len(trials)} of {self.num_trials}): {settings}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if result.get("outcome") in FAILED_OUTCOMES:
            self._print(trial, f"ends as {result['outcome']}: {result.get('error', '')}")
        else:
            self._print(
                trial,
                f"step {result[STEP]}/{self.steps}  {METRIC} {result[METRIC]:.4f}  loss {result['train/loss']:.3f}  "
                f"{result['train/images_per_s']:.1f} images/s  peak {result['peak_memory_gib']:.3f} GiB, "
                f"validation {result['val/peak_memory_gib']:.3f}",
            )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if _outcome(trial.last_result or {}, self.steps) == "stopped":
            self._print(trial, "is stopped early")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._print(trial, "failed")

    def _print(self, trial: Trial, text: str) -> None:
        print(f"{time.time() - self.began:6.0f} s  trial {trial.trial_id}  {text}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _outcome(last: Mapping[str, Any], steps: int) -> str:
    outcome = str(last.get("outcome", "failed"))
    return "stopped" if outcome == "finished" and last.get(STEP, 0) < steps else outcome


def _rows(grid: ResultGrid, base: Config) -> list[TrialRow]:
    rows = []
    for index in range(len(grid)):
        result = grid[index]
        last = result.metrics or {}
        history = result.metrics_dataframe
        outcome = "failed" if result.error else _outcome(last, base.trainer.steps)
        scored = None
        if outcome not in FAILED_OUTCOMES and history is not None and METRIC in history:
            scored = history.loc[history[METRIC].idxmax()]
        rows.append(
            TrialRow(
                trial=Path(result.path).name,
                outcome=outcome,
                overrides=dict(result.config or {}),
                miou=None if scored is None else float(scored[METRIC]),
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
