"""One trial on Ray Train: what runs in the worker, and what Tune calls.

Three processes make a trial: Tune's actor runs `run_trial`, Ray Train's controller watches the workers, and each worker
runs `_work`, which is `kiloseg.training.loop.train` with a report that feeds Ray. After the death of any
of them Tune starts the trial again, from its newest checkpoint. A worker that gets SIGTERM writes a checkpoint and leaves.

Numbers reach MLflow through the study's driver (see `kiloseg.tuning.callbacks.recorder`): one writer, whatever the number of
trials, and no worker pays the 2.5 s of CPU that importing mlflow and opening its database take. Only the worker imports torch
(2 s of CPU a process), so what needs it is imported where it is used.
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray import tune
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from kiloseg.config import Config
from kiloseg.overrides import override
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import inside, open_folder
from kiloseg.training import preemption
from kiloseg.tuning.cluster import Resources
from kiloseg.tuning.ray_workarounds.datasets_callback import TrainerWithoutDatasets
from kiloseg.tuning.ray_workarounds.sigterm import SingleWorkerConfig
from kiloseg.tuning.ray_workarounds.train_snapshot import drop_damaged_snapshot
from kiloseg.tuning.reports import METRIC, UNREPORTED, Reporter, run_of

VERDICT = "verdict"
"""Folder of a trial in which a worker that finds that the trial cannot work leaves the result, if it is one of several."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What all trials of a study have in common; picklable."""

    base: Config
    storage: str
    """Folder for checkpoints that all nodes see, by absolute path or URL."""
    resources: Resources
    """What each trial gets of the cluster."""


def run_trial(overrides: Mapping[str, Any], settings: TrialSettings) -> None:
    """Trains `settings.base` with `overrides` (by dotted names) in a Ray Train run of its own. Tune calls this in an actor."""
    from ray.tune.integration.ray_train import TuneReportCallback

    name = run_of(tune.get_context().get_trial_id())
    directory = inside(settings.storage, name)
    drop_damaged_snapshot(directory)
    resources = settings.resources
    scaling = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        scaling["GPU"] = resources.gpus_per_worker
    trainer = _trainer_class(resources)(
        _work,
        train_loop_config={"overrides": dict(overrides), "settings": settings, "directory": directory},
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=scaling
        ),
        run_config=RunConfig(
            name=name,
            storage_path=settings.storage,
            callbacks=[TuneReportCallback()],
            # Two, so that there is one before the newest should that turn out to be damaged.
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=METRIC),
            # A worker that dies ends the run, and Tune starts the trial again from its newest checkpoint. If the controller
            # replaced the worker, it would do so also when Tune ends a trial and the worker happens to die first: nobody
            # knows the placement group of that replacement, and it keeps its CPU or GPU for good.
            # Without a controller limit a worker that finds no room to start is waited for without end.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
    )
    open_folder(directory).remove(VERDICT)
    try:
        trainer.fit()
    except Exception:
        verdicts = open_folder(inside(directory, VERDICT))
        names = [name for name in verdicts.entries() if name.endswith(".json")]
        if not names:
            raise  # a process was lost, for example: Tune starts the trial again
        tune.report(json.loads(verdicts.read(names[0])))


def _trainer_class(resources: Resources) -> Callable[..., DataParallelTrainer]:
    if resources.workers == 1:
        # A process group of one would have Tune's actor and the controller import torch, 2 s of CPU each.
        return functools.partial(TrainerWithoutDatasets, backend_config=SingleWorkerConfig())
    from ray.train.torch import TorchTrainer

    from kiloseg.tuning.ray_workarounds.sigterm_process_group import ListeningTorchConfig

    class TorchGroup(TrainerWithoutDatasets, TorchTrainer):
        pass

    backend = "nccl" if resources.gpus_per_worker else "gloo"
    return functools.partial(TorchGroup, torch_config=ListeningTorchConfig(backend=backend))


def _newest_state(directory: str) -> dict[str, Any] | None:
    """The newest whole checkpoint of a trial, found in its folder: Ray Train knows only those that were reported to it."""
    from kiloseg.training.checkpoint import load_newest

    folders = [
        name for name in open_folder(directory).entries() if name.startswith("checkpoint_") or name == UNREPORTED
    ]
    return load_newest(*(inside(directory, name) for name in folders))


def _work(given: dict[str, Any]) -> None:
    """Trains in one worker. Errors that would come again at a retry are results of the trial, not crashes.

    Damaged data and full disks are crashes: the trial is tried again, perhaps on another node, and --resume goes on with it
    once they are repaired.
    """
    began = time.perf_counter()
    from kiloseg.memory import is_out_of_memory
    from kiloseg.training.loop import NonFiniteLossError, train

    settings: TrialSettings = given["settings"]
    directory = given["directory"]
    rank = ray.train.get_context().get_world_rank()
    reporter = Reporter(rank=rank, steps=settings.base.trainer.steps, unreported=inside(directory, UNREPORTED))
    try:
        with tempfile.TemporaryDirectory(prefix="kiloseg-") as scratch:
            config = override(
                settings.base, {**given["overrides"], "trainer.output": scratch, "trainer.progress": False}
            )
            state = _newest_state(directory)
            reporter.begin(began)
            if state is not None:
                reporter.resume(state)
            try:
                train(config, reporter, resume=state, preempted=preemption.requested)
            except Exception:
                reporter.keep(Path(scratch))
                raise
    except Exception as error:
        if is_out_of_memory(error):
            outcome = "oom"
        elif isinstance(error, NonFiniteLossError):
            outcome = "diverged"
        elif isinstance(error, ValueError) and not isinstance(error, DataError):  # settings that cannot work
            outcome = "refused"
        else:
            raise
        result = reporter.failed(outcome, error)
        if settings.resources.workers == 1:
            ray.train.report(result)
            return
        # The other workers may be waiting in a collective: only an error of this one ends them. What it was stays behind.
        open_folder(inside(directory, VERDICT)).write(f"{rank}.json", json.dumps(result).encode())
        raise
