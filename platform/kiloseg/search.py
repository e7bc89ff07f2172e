"""A study: many trials on Ray Tune, either a search (settings chosen by Optuna, bad ones stopped early) or a grid."""

from __future__ import annotations

import functools
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
from kiloseg.data.folder import LocalFolder, inside, open_folder
from kiloseg.data.shards import read_info
from kiloseg.lease import Lease
from kiloseg.outbox import Outbox, OutboxRun
from kiloseg.progress import Progress
from kiloseg.recorder import Recorder
from kiloseg.reporter import CHECKPOINT, FAILED_OUTCOMES, METRIC, STEP, outcome_of
from kiloseg.summary import TrialRow
from kiloseg.tracking import Tracker, source_tags
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
    """Folder for results; on a cluster one that all nodes see, such as a URL that pyarrow knows (s3://BUCKET/FOLDER)."""
    retries: int = 4
    """Times that a trial is started again after the loss of a process of its, of its node, or of data it reads."""
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
        if self.retries < 0:
            raise ValueError(f"retries = {self.retries}: expected 0 or more")
        if self.reduction < 2:
            raise ValueError(f"reduction = {self.reduction}: expected 2 or more")
        if not self.name or set(self.name) & set("/\\'\""):
            raise ValueError(f"name = {self.name!r}: expected a word without slashes and quotes")


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study that has ended."""

    rows: list[TrialRow]
    run: OutboxRun
    """Its parent run."""
    folder: Path
    """On this machine, for what is made of the result."""
    location: str
    """Where that folder's files end up: itself, or the study's folder at the URL of its runs."""
    seconds: float
    lease: Lease

    def finish(self) -> None:
        """Puts the folder's files where they belong, delivers what MLflow is still to get, and lets the study go."""
        place = open_folder(self.location)
        if not isinstance(place, LocalFolder):
            for file in filter(Path.is_file, self.folder.iterdir()):
                place.put(file, file.name)
        self.run.end("FINISHED")
        self.run.outbox.close()
        self.lease.release()


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
        ValueError: a name in `space` that is no setting, nothing to resume, or runs at a URL without an MLflow server.
        ConnectionError: MLflow cannot be reached.
        StudyRunningError: the study to resume is being run.
    """
    for values in first:
        override(base, values)
    unknown = space.keys() - flatten(base).keys()
    if unknown:
        raise ValueError(
            f"no setting is called {', '.join(sorted(unknown))}; the settings are: {', '.join(flatten(base))}"
        )

    def searcher(at_once: int) -> OptunaSearch:
        return OptunaSearch(sampler=_sampler(study), points_to_evaluate=first)

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
        ValueError: a name that is no setting or a value it cannot have, or as `search`.
        ConnectionError: as `search`.
        StudyRunningError: as `search`.
    """
    for values in points:
        override(base, values)
    if not points:
        return _Begun.of(study, base, script=script, tags=tags).result([])
    study = replace(study, num_trials=len(points), early_stopping=False)
    # Tune wants a value for every name of its space at every point, and the names in its space.
    names = dict.fromkeys(name for values in points for name in values)
    defaults = flatten(base)
    complete = [{name: values.get(name, defaults[name]) for name in names} for values in points]

    def searcher(at_once: int) -> BasicVariantGenerator:
        # Tune's own limit does not reach a generator that it is given.
        return BasicVariantGenerator(points_to_evaluate=complete, max_concurrent=at_once)

    return _run(study, base, dict.fromkeys(names), searcher, FIFOScheduler(), script=script, tags=tags)


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A study that has its folders, its run in MLflow and its lease."""

    storage: str
    """Of Ray's results of all studies."""
    study_id: str
    folder: Path
    location: str
    outbox: Outbox
    lease: Lease
    at: float

    @staticmethod
    def of(study: Study, base: Config, *, script: str, tags: Mapping[str, str]) -> _Begun:
        at = time.perf_counter()
        runs = study.runs
        if "://" not in runs:
            check_kept(Path(runs).resolve())
            runs = str(Path(runs).resolve())
        storage = inside(runs, "ray")
        study_id = _newest(storage, study.name) if study.resume else _new_id(study.name)
        info = read_info(base.data.path)
        place = open_folder(inside(runs, f"studies/{study_id}"))
        lease = Lease(place, study_id)
        tracker = Tracker.open(study.name, Path(runs) if isinstance(place, LocalFolder) else None)
        tracked = tracker.study_run(study_id, flatten(base), source_tags(PACKAGE.parents[1], script))
        tracked.log_dataset(info.name, info.digest, base.data.path)
        tracked.set_tags({f"study.{name}": str(value) for name, value in asdict(study).items()} | dict(tags))
        folder = place.path if isinstance(place, LocalFolder) else Path(tempfile.mkdtemp(prefix="kiloseg-study-"))
        return _Begun(
            storage=storage,
            study_id=study_id,
            folder=folder,
            location=place.location,
            outbox=Outbox(folder, tracked, elsewhere=place),
            lease=lease,
            at=at,
        )

    @property
    def checkpoints(self) -> str:
        """Folder of all its trials' checkpoints."""
        return inside(self.storage, f"{self.study_id}/train")

    def result(self, rows: list[TrialRow]) -> StudyResult:
        """What it came to."""
        return StudyResult(
            rows=rows,
            run=self.outbox.study,
            folder=self.folder,
            location=self.location,
            seconds=time.perf_counter() - self.at,
            lease=self.lease,
        )


def _run(
    study: Study,
    base: Config,
    space: Mapping[str, Any],
    searcher: Callable[[int], Searcher | SearchAlgorithm],
    scheduler: TrialScheduler,
    *,
    script: str,
    tags: Mapping[str, str],
) -> StudyResult:
    begun = _Begun.of(study, base, script=script, tags=tags)
    # Of Tune's own loggers only the one that results are read back from; TensorBoard's cannot take a history.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # How often Tune writes down what --resume goes on from. It takes a time in proportion to the trials; by default at
    # least 10 s pass, and trials that began since are forgotten by a study that is killed.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(max(study.num_trials / 50, 1)))
    start_ray()
    resources = trial_resources(study.workers, study.cpus_per_worker, study.gpus_per_worker)
    settings = TrialSettings(base=base, storage=begun.checkpoints, resources=resources)
    # A trial's own bundle must be free of CPUs and GPUs: its Ray Train workers reserve those in a placement group of their
    # own, and trials that held a CPU while waiting for their workers' would block each other for ever.
    trainable = tune.with_resources(functools.partial(run_trial, settings=settings), {"memory": 64 * 2**20})
    callbacks = [
        JsonLoggerCallback(),
        Recorder(begun.outbox, base, tags),
        Progress(study.num_trials, base.trainer.steps),
    ]
    try:
        if study.resume:
            tuner = tune.Tuner.restore(
                inside(begun.storage, begun.study_id), trainable, param_space=dict(space), restart_errored=True
            )
        else:
            at_once = study.max_concurrent or concurrency(resources)
            tuner = tune.Tuner(
                trainable,
                param_space=dict(space),
                tune_config=TuneConfig(
                    metric=METRIC,
                    mode="max",
                    num_samples=study.num_trials,
                    max_concurrent_trials=at_once,
                    search_alg=searcher(at_once),
                    scheduler=scheduler,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=RunConfig(
                    name=begun.study_id,
                    storage_path=begun.storage,
                    failure_config=FailureConfig(max_failures=study.retries),
                    callbacks=callbacks,
                    verbose=0,  # its tables fill the screen; Progress prints a line a report
                ),
            )
        grid = tuner.fit()
    except BaseException as error:
        begun.outbox.study.end("FAILED" if isinstance(error, Exception) else "KILLED")
        begun.outbox.close(patience_s=5)
        begun.lease.release()
        raise
    return begun.result(_rows(grid, base, begun.checkpoints))


def _new_id(name: str) -> str:
    # Two studies of one name may be started in the same second.
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def _newest(storage: str, name: str) -> str:
    folder = open_folder(storage)
    identity = re.compile(re.escape(name) + r"-\d{8}-\d{6}(-[0-9a-f]{4})?")
    for found in reversed(folder.entries()):
        if identity.fullmatch(found) and tune.Tuner.can_restore(inside(storage, found)):
            return found
    raise ValueError(f"no study of the name {name!r} to resume in {folder.name}; start one without --resume")


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


def _rows(grid: ResultGrid, base: Config, checkpoints: str) -> list[TrialRow]:
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
                checkpoint=None if scored is None else _relocated(scored.get(CHECKPOINT), checkpoints),
            )
        )
    return rows


def _relocated(checkpoint: Any, checkpoints: str) -> str | None:
    """Where a checkpoint's folder is now: Ray names a path without its filesystem, on the machine that wrote it."""
    if not isinstance(checkpoint, str):
        return None
    return inside(checkpoints, "/".join(checkpoint.partition("?")[0].split("/")[-2:]))
