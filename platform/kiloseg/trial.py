"""One trial on Ray Train: what runs in the worker, and what Tune calls.

Three processes make a trial: Tune's actor runs `run_trial`, Ray Train's controller watches the workers, and each worker
runs `_work`, which is `kiloseg.train.train` with a report that feeds Ray. After a death of any
of them Tune starts the trial again, from its newest checkpoint.

Numbers reach MLflow through the study's driver (see `kiloseg.recorder`): one writer, whatever the number of trials, and no
worker pays the 2.5 s of CPU that importing mlflow and opening its database take.
"""

from __future__ import annotations

import functools
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

from kiloseg.cluster import Resources
from kiloseg.config import Config, override
from kiloseg.reporter import METRIC, Reporter


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What is the same for all trials of a study; picklable."""

    base: Config
    storage: str
    """Folder, absolute, that all nodes see; checkpoints go there."""
    resources: Resources


def run_trial(overrides: Mapping[str, Any], settings: TrialSettings) -> None:
    """A Tune function: trains `settings.base` with `overrides` (dotted names) in a Ray Train run of its own."""
    from ray.tune.integration.ray_train import TuneReportCallback

    trial = tune.get_context().get_trial_id()
    resources = settings.resources
    scaling = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        scaling["GPU"] = resources.gpus_per_worker
    trainer = _trainer_class(resources)(
        _work,
        train_loop_config={"overrides": dict(overrides), "settings": settings, "trial": trial},
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=scaling
        ),
        run_config=RunConfig(
            # The same name and storage make a restarted driver find the run's checkpoints again.
            name=f"train-{trial}",
            storage_path=settings.storage,
            callbacks=[TuneReportCallback()],
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=METRIC),
            # A worker that dies ends the run, and Tune starts the trial again from its newest checkpoint. If the controller
            # replaced the worker itself, it would do so as well when Tune ends a trial and the worker happens to die
            # first: the placement group of that replacement is known to nobody and keeps its CPU or GPU for good.
            # Without a controller limit a worker that finds no room to start is waited for without end.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
    )
    trainer.fit()


class _Trainer(DataParallelTrainer):
    """Without the process that serves data sets of Ray Data, of which a trial has none: 1.5 s of CPU."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]


def _trainer_class(resources: Resources) -> Callable[..., DataParallelTrainer]:
    if resources.workers == 1:
        # A process group of one would have Tune's actor and the controller import torch, 2 s of CPU each.
        return _Trainer
    from ray.train.torch import TorchConfig, TorchTrainer

    class TorchGroup(_Trainer, TorchTrainer):
        pass

    backend = "nccl" if resources.gpus_per_worker else "gloo"
    return functools.partial(TorchGroup, torch_config=TorchConfig(backend=backend))


def _work(given: dict[str, Any]) -> None:
    """Runs in every worker. Errors that would come again at a retry are results of the trial, not crashes."""
    began = time.perf_counter()
    from kiloseg.memory import is_out_of_memory
    from kiloseg.train import NonFiniteLossError, train

    settings: TrialSettings = given["settings"]
    reporter = Reporter(rank=ray.train.get_context().get_world_rank(), steps=settings.base.trainer.steps)
    try:
        with tempfile.TemporaryDirectory(prefix="kiloseg-") as scratch:
            config = override(
                settings.base, {**given["overrides"], "trainer.output": scratch, "trainer.progress": False}
            )
            resume = ray.train.get_checkpoint()
            reporter.begin(began)
            if resume is None:
                train(config, reporter)
            else:
                with resume.as_directory() as directory:
                    last = train(config, reporter, resume=Path(directory))
                if not reporter.reported:
                    reporter.repeat(last, resume)
    except Exception as error:
        if settings.resources.workers > 1:
            raise  # the other workers are waiting in a collective; only a restart of all of them ends that
        if is_out_of_memory(error):
            reporter.fail("oom", error)
        elif isinstance(error, NonFiniteLossError):
            reporter.fail("diverged", error)
        elif isinstance(error, ValueError):  # includes DataError: settings or data that cannot work
            reporter.fail("refused", error)
        else:
            raise
