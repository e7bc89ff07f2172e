"""Runs the trials of a study on Ray Tune."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher

from kiloseg.config import Config
from kiloseg.tuning.callbacks.console import Progress
from kiloseg.tuning.callbacks.live_table import live_table
from kiloseg.tuning.callbacks.recorder import Recorder
from kiloseg.tuning.cluster import Resources, concurrency, has_gpu, sharing, trials_per_node
from kiloseg.tuning.ray_workarounds.asha_rungs import Rungs
from kiloseg.tuning.ray_workarounds.copied_files import CopiedFiles
from kiloseg.tuning.ray_workarounds.damaged_state import check_state
from kiloseg.tuning.ray_workarounds.environment import set_tune_variables
from kiloseg.tuning.ray_workarounds.memory_monitor import MemoryKills, surviving_memory_kills
from kiloseg.tuning.ray_workarounds.old_names import check_readable, old_names
from kiloseg.tuning.ray_workarounds.placement import DRIVER_RESOURCES
from kiloseg.tuning.ray_workarounds.placement_groups import watched_placement_groups
from kiloseg.tuning.ray_workarounds.retries import Retries
from kiloseg.tuning.ray_workarounds.utc_names import utc
from kiloseg.tuning.ray_workarounds.waiting_for_copies import waiting_for_copies
from kiloseg.tuning.ray_workarounds.whole_files import storage_filesystem
from kiloseg.tuning.reports import METRIC, STEP
from kiloseg.tuning.results import trial_rows
from kiloseg.tuning.study import RunningStudy, Study
from kiloseg.tuning.trial import TrialSettings, end_as_oom, run_trial
from kiloseg.tuning.trial_row import TrialRow

SearcherFactory = Callable[[int], Searcher | SearchAlgorithm]
"""A function that takes the number of trials that run at once and returns the searcher that chooses their settings."""


def run_trials(
    running: RunningStudy,
    study: Study,
    base: Config,
    space: Mapping[str, Any] | None,
    num_trials: int,
    searcher: SearcherFactory,
    scheduler: TrialScheduler,
    *,
    tags: Mapping[str, str],
    rungs: dict[str, Any] | None = None,
) -> list[TrialRow]:
    """Runs the trials of a study until they end; when resuming, those that an interruption left unfinished.

    Args:
        running: the study.
        study: how trials are run.
        base: the run that trials vary.
        space: Tune's search space; None if the searcher has its own.
        num_trials: total number of trials.
        searcher: creates the searcher that chooses their settings.
        scheduler: decides which trials are stopped early.
        tags: tags of every trial's run in MLflow.
        rungs: scores of earlier trials, as `saved_rungs` returns them, with which ASHA compares these too.

    Raises:
        DataError: the state of the study to resume is damaged, or comes from another version.
        ValueError: the cluster has no room for a trial.
    """
    set_tune_variables(num_trials, running.state)
    if study.resume:
        check_state(running.state)
    running.connect_to_ray()
    resources = study.resources(has_gpu=has_gpu())
    progress = Progress(num_trials, base.trainer.steps)
    kills = _memory_kills(running, progress)
    # For a resumed study, Tune loads its saved callbacks instead; those that belong to a process unpickle as the ones made here.
    callbacks = [
        JsonLoggerCallback(),
        CopiedFiles(),
        Recorder(running.delivery, base, tags),
        progress,
        Retries(running.checkpoints),
        kills,
        *([Rungs(scheduler, rungs)] if isinstance(scheduler, ASHAScheduler) else []),
    ]
    with old_names(), utc(), waiting_for_copies(), surviving_memory_kills(kills), watched_placement_groups() as watch:
        trainable = _trainable(running, study, base, resources, watch)
        if study.resume:
            check_readable(running.state, running.checkpoints)
            tuner = Tuner.restore(
                running.state,
                trainable,
                param_space=None if space is None else dict(space),
                resume_errored=True,
                storage_filesystem=storage_filesystem(running.storage),
            )
        else:
            at_once = study.max_concurrent or concurrency(resources)
            if resources.shares_gpu:
                print(sharing(resources, at_once), flush=True)
            tuner = Tuner(
                trainable,
                param_space=dict(space or {}),
                tune_config=TuneConfig(
                    metric=METRIC,
                    mode="max",
                    num_samples=num_trials,
                    max_concurrent_trials=at_once,
                    search_alg=searcher(at_once),
                    scheduler=scheduler,
                    trial_name_creator=trial_name,
                    trial_dirname_creator=trial_name,
                ),
                run_config=RunConfig(
                    name=running.study_id,
                    storage_path=running.storage,
                    storage_filesystem=storage_filesystem(running.storage),
                    failure_config=FailureConfig(max_failures=study.retries),
                    callbacks=callbacks,
                    verbose=0,  # its tables fill the screen; Progress shows every report
                ),
            )
        running.has_trials = True
        with live_table(num_trials, base.trainer.steps):
            results = tuner.fit()
        return trial_rows(results, base, running.checkpoints)


def _memory_kills(running: RunningStudy, progress: Progress) -> MemoryKills:
    """Returns the callback for trials that Ray's memory monitor kills."""

    def end(trial: Trial, reason: str) -> None:
        end_as_oom(running.checkpoints, trial.trial_id, (trial.last_result or {}).get(STEP, 0), reason)

    return MemoryKills(end, progress.tell)


def _trainable(running: RunningStudy, study: Study, base: Config, resources: Resources, watch: str) -> Any:
    """Returns what Tune runs for every trial."""
    settings = TrialSettings(
        base=base,
        storage=running.checkpoints,
        resources=resources,
        watch=watch,
        continues=running.continues,
        trials_per_node=trials_per_node(study.max_concurrent, resources),
    )
    return tune.with_resources(functools.partial(run_trial, settings=settings), DRIVER_RESOURCES)


def trial_name(trial: Trial) -> str:
    """Returns a trial's id, which is the name of the trial and of its folder."""
    name: str = trial.trial_id
    return name
