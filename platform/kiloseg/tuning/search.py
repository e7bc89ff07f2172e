"""Trials on Ray Tune: a search (settings chosen by Optuna, bad ones stopped early) or a grid."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas
from ray import tune
from ray.tune import FailureConfig, Result, ResultGrid, RunConfig, TuneConfig
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch

from kiloseg.config import Config
from kiloseg.overrides import flatten, override
from kiloseg.storage.filesystems import inside, open_folder
from kiloseg.training.checkpoint import checkpoint_name
from kiloseg.tuning.callbacks.console import Progress
from kiloseg.tuning.callbacks.recorder import Recorder
from kiloseg.tuning.cluster import concurrency, start_ray, trial_resources
from kiloseg.tuning.ray_workarounds.resumption import Retries, Rungs, utc
from kiloseg.tuning.ray_workarounds.staging import Staging
from kiloseg.tuning.ray_workarounds.study_state import check_state, still_while_copied, storage_filesystem
from kiloseg.tuning.reports import CHECKPOINT, FAILED_OUTCOMES, HISTORY, METRIC, STEP, outcome_of, run_of
from kiloseg.tuning.study import BegunStudy, Study, StudyResult
from kiloseg.tuning.summary import TrialRow
from kiloseg.tuning.trial import TrialSettings, run_trial


@dataclass(frozen=True, kw_only=True)
class Search(Study):
    """How settings are searched for."""

    num_trials: int = 8
    """Trials in all."""
    seed: int = 0
    """Of the sampler."""
    early_stopping: bool = True
    """Stop trials that fall behind at a validation (ASHA)."""
    reduction: int = 3
    """One trial in so many goes on at each rung of ASHA."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_trials < 1:
            raise ValueError(f"num_trials = {self.num_trials}: expected at least 1")
        if self.reduction < 2:
            raise ValueError(f"reduction = {self.reduction}: expected 2 or more")


def search(
    study: Search, base: Config, space: Mapping[str, Any], *, first: list[dict[str, Any]], script: str
) -> StudyResult:
    """Runs the study to its end. A trial that fails or runs out of memory is a row of the result like any other.

    Args:
        study: how.
        base: the run that trials vary; paths must be absolute and `trainer.validate_every` sets the rungs of ASHA.
        space: Tune domains by dotted names of settings.
        first: settings to try before the sampler chooses, each a value for every name of `space`.
        script: what started it, for MLflow.

    Raises:
        ValueError: a name in `space` that is no setting, nothing to resume, a study to resume that is another, or runs at a URL
            without an MLflow server.
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
        return _Searcher(sampler=_sampler(study), points_to_evaluate=first)

    plan = {f"search of {name}": f"{type(domain).__name__} {domain.domain_str}" for name, domain in space.items()}
    plan |= {name: getattr(study, name) for name in ("num_trials", "seed", "early_stopping", "reduction")}
    begun = BegunStudy.of(study, base, plan, script=script, tags={})
    return _run(begun, study, base, space, study.num_trials, searcher, _scheduler(study, base), tags={})


def run_grid(
    study: Study,
    base: Config,
    points: Sequence[Mapping[str, Any]],
    *,
    script: str,
    tags: Mapping[str, str],
) -> StudyResult:
    """Runs a trial at each of `points`, all to their end.

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
    # Tune wants a value for every name of its space at every point, and the names in its space.
    names = dict.fromkeys(name for values in points for name in values)
    defaults = flatten(base)
    complete = [{name: values.get(name, defaults[name]) for name in names} for values in points]
    plan = {"trials": len(points), **tags} | {
        f"trial {number}: {name}": value for number, values in enumerate(complete, 1) for name, value in values.items()
    }
    begun = BegunStudy.of(study, base, plan, script=script, tags=tags)
    if not points:
        return begun.result([])

    def searcher(at_once: int) -> BasicVariantGenerator:
        # Tune's own limit does not reach a generator that it is given.
        return BasicVariantGenerator(points_to_evaluate=complete, max_concurrent=at_once)

    return _run(begun, study, base, dict.fromkeys(names), len(points), searcher, FIFOScheduler(), tags=tags)


def _run(
    begun: BegunStudy,
    study: Study,
    base: Config,
    space: Mapping[str, Any],
    num_trials: int,
    searcher: Callable[[int], Searcher | SearchAlgorithm],
    scheduler: TrialScheduler,
    *,
    tags: Mapping[str, str],
) -> StudyResult:
    # Of Tune's own loggers only the one that results are read back from; TensorBoard's cannot take a history.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    # Tune would take Ctrl-C for the end of the study, and its trials for ended ones.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    state = inside(begun.storage, begun.study_id)
    # How often Tune writes down what --resume goes on from; trials that began since are forgotten by a study that is killed. It
    # takes a time in proportion to the trials, and on an object store some requests, during which the next must not begin.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(max(num_trials / 50, 10 if "://" in state else 1)))
    running = study.resume
    try:
        if study.resume:
            check_state(state)
        start_ray()
        resources = trial_resources(study.workers, study.cpus_per_worker, study.gpus_per_worker)
        settings = TrialSettings(base=base, storage=begun.checkpoints, resources=resources)
        # A trial's own bundle must be free of CPUs and GPUs: its Ray Train workers reserve those in a placement group of
        # their own, and trials that held a CPU while waiting for their workers' would block each other for ever.
        trainable = tune.with_resources(functools.partial(run_trial, settings=settings), {"memory": 64 * 2**20})
        callbacks = [
            JsonLoggerCallback(),
            Staging(),
            Recorder(begun.outbox, base, tags),
            Progress(num_trials, base.trainer.steps),
            Retries(begun.checkpoints),
            *([Rungs(scheduler)] if isinstance(scheduler, ASHAScheduler) else []),
        ]
        if study.resume:
            tuner = tune.Tuner.restore(
                state,
                trainable,
                param_space=dict(space),
                resume_errored=True,
                storage_filesystem=storage_filesystem(begun.storage),
            )
        else:
            at_once = study.max_concurrent or concurrency(resources)
            tuner = tune.Tuner(
                trainable,
                param_space=dict(space),
                tune_config=TuneConfig(
                    metric=METRIC,
                    mode="max",
                    num_samples=num_trials,
                    max_concurrent_trials=at_once,
                    search_alg=searcher(at_once),
                    scheduler=scheduler,
                    trial_name_creator=_trial_name,
                    trial_dirname_creator=_trial_name,
                ),
                run_config=RunConfig(
                    name=begun.study_id,
                    storage_path=begun.storage,
                    storage_filesystem=storage_filesystem(begun.storage),
                    failure_config=FailureConfig(max_failures=study.retries),
                    callbacks=callbacks,
                    verbose=0,  # its tables fill the screen; Progress prints a line a report
                ),
            )
        running = True
        with utc(), still_while_copied():
            grid = tuner.fit()
    except BaseException as error:
        if running:
            error.add_note(f"what study {begun.study_id} has computed is kept: --resume goes on with it")
        if not begun.lease.lost:  # to one that goes on with the study
            begun.outbox.study.end("FAILED" if isinstance(error, Exception) else "KILLED")
        begun.outbox.close(patience_s=0 if begun.lease.lost else 5)
        begun.lease.release()
        raise
    return begun.result(_rows(grid, base, begun.checkpoints))


class _Searcher(OptunaSearch):
    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Not of a trial that had failed when the study was resumed, of whose end Optuna has been told; nor of one that began
        between Tune's writing down of its own state and of Optuna's, right before a death."""
        if trial_id in self._ot_trials and trial_id not in self._completed_trials:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """As well."""
        if trial_id in self._ot_trials and trial_id not in self._completed_trials:
            super().on_trial_complete(trial_id, result, error)


def _sampler(study: Search) -> optuna.samplers.BaseSampler:
    # The default of 10 random trials would make a study of 8 a random search.
    return optuna.samplers.TPESampler(
        n_startup_trials=max(study.num_trials // 2, 1), constant_liar=True, seed=study.seed
    )


def _scheduler(study: Search, base: Config) -> TrialScheduler:
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
        trial = Path(result.path).name
        outcome = "failed" if result.error else outcome_of(last, base.trainer.steps)
        scored = None if outcome in FAILED_OUTCOMES else _best_validation(result)
        rows.append(
            TrialRow(
                trial=trial,
                outcome=outcome,
                overrides=dict(result.config or {}),
                miou=None if scored is None else scored.miou,
                last_miou=None if scored is None else float(last[METRIC]),
                step=int(last.get(STEP, 0)),
                peak_memory_gib=last.get("peak_memory_gib"),
                val_peak_memory_gib=last.get("val/peak_memory_gib"),
                images_per_s=last.get("train/images_per_s"),
                seconds=float(last.get("time_total_s", 0.0)),
                train_seconds=float(last.get("train_s", 0.0)),
                error=str(result.error or last.get("error", "")),
                checkpoint=None if scored is None else scored.folder(inside(checkpoints, run_of(trial))),
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class _Validation:
    miou: float
    step: int
    checkpoint: str | None
    """Name of its checkpoint's folder, where a result tells it."""

    def folder(self, trial: str) -> str | None:
        """Of its checkpoint, in the folder of its trial's; None if it is gone."""
        if self.checkpoint is not None:
            return inside(trial, self.checkpoint)
        place, file = open_folder(trial), checkpoint_name(self.step)
        held = (name for name in place.entries() if name.startswith("checkpoint_") and file in place.entries(name))
        return next((inside(trial, name) for name in held), None)


def _best_validation(result: Result) -> _Validation | None:
    frame = result.metrics_dataframe
    if frame is None or HISTORY not in frame:
        return None
    # In the histories of results: Ray forgets the results that a trial had before the study was resumed on another machine, while
    # the first result after that tells the history of the whole run again.
    scores = {report[STEP]: report[METRIC] for told in frame[HISTORY] for report in told if METRIC in report}
    if not scores:
        return None
    best = max(scores, key=lambda step: (scores[step], step))  # of equal ones Train keeps the later checkpoints
    named = frame[frame[STEP] == best].get(CHECKPOINT, pandas.Series(dtype=object)).dropna()
    # Ray names a path without its filesystem, on the machine that wrote it.
    name = named.iloc[-1].partition("?")[0].rsplit("/", 1)[-1] if len(named) else None
    return _Validation(miou=float(scores[best]), step=best, checkpoint=name)
