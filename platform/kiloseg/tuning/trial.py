"""One trial on Ray Train: what runs in the worker, and what Tune calls.

Three processes make a trial: Tune's actor runs `run_trial`, Ray Train's controller watches the workers, and each worker
runs `_work`, which is `kiloseg.training.loop.train` with a report that feeds Ray. After a death of any
of them Tune starts the trial again, from its newest checkpoint. A worker that gets SIGTERM writes one more and ends.

Numbers reach MLflow through the study's driver (see `kiloseg.tuning.callbacks.recorder`): one writer, whatever the number of
trials, and no worker pays the 2.5 s of CPU that importing mlflow and opening its database take. Only the worker imports torch
(2 s of CPU a process), so what needs it is imported where it is used.
"""

from __future__ import annotations

import functools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray import tune
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from kiloseg.config import Config
from kiloseg.overrides import override
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import inside, open_folder
from kiloseg.training import preemption
from kiloseg.tuning.cluster import Resources
from kiloseg.tuning.reports import METRIC, UNREPORTED, Reporter, run_of

logger = logging.getLogger(__name__)

VERDICT = "verdict"
"""Folder of a trial in which each of several workers leaves the result of one that cannot work, if it finds that."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's own file."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What is the same for all trials of a study; picklable."""

    base: Config
    storage: str
    """Folder that all nodes see, by absolute path or URL; checkpoints go there."""
    resources: Resources


def run_trial(overrides: Mapping[str, Any], settings: TrialSettings) -> None:
    """A Tune function: trains `settings.base` with `overrides` (dotted names) in a Ray Train run of its own."""
    from ray.tune.integration.ray_train import TuneReportCallback

    name = run_of(tune.get_context().get_trial_id())
    directory = inside(settings.storage, name)
    _drop_damaged_snapshot(directory)
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
            # replaced the worker itself, it would do so as well when Tune ends a trial and the worker happens to die
            # first: the placement group of that replacement is known to nobody and keeps its CPU or GPU for good.
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
            raise  # a process was lost, say: Tune starts the trial again
        tune.report(json.loads(verdicts.read(names[0])))


class _ListeningBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Signals are for the main thread of a process, which training does not run in."""
        worker_group.execute(preemption.install_handler)


class _Alone(BackendConfig):
    """Of a worker that has no others: no process group, and SIGTERM as preemption (see `kiloseg.training.preemption`)."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _ListeningBackend


class _Trainer(DataParallelTrainer):
    """Without the process that serves data sets of Ray Data, of which a trial has none: 1.5 s of CPU."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]


def _trainer_class(resources: Resources) -> Callable[..., DataParallelTrainer]:
    if resources.workers == 1:
        # A process group of one would have Tune's actor and the controller import torch, 2 s of CPU each.
        return functools.partial(_Trainer, backend_config=_Alone())
    from ray.train.torch import TorchTrainer

    from kiloseg.tuning.ray_workarounds.process_group import ListeningTorchConfig

    class TorchGroup(_Trainer, TorchTrainer):
        pass

    backend = "nccl" if resources.gpus_per_worker else "gloo"
    return functools.partial(TorchGroup, torch_config=ListeningTorchConfig(backend=backend))


def _drop_damaged_snapshot(directory: str) -> None:
    """Removes Ray Train's list of a run's checkpoints if it is damaged, or names some that are gone.

    It is written in place, so that a full disk or a death can cut it short, and Train would refuse the run from then on.
    """
    folder = open_folder(directory)
    try:
        listed = json.loads(folder.read(SNAPSHOT))["checkpoint_results"]
        gone = {entry["checkpoint_dir_name"] for entry in listed} - set(folder.entries())
    except FileNotFoundError:
        return
    except (ValueError, KeyError):
        gone = {SNAPSHOT}
    if gone:
        logger.warning("%s is damaged (%s); it is made anew", folder.at(SNAPSHOT), ", ".join(sorted(gone)))
        folder.remove(SNAPSHOT)


def _newest_state(directory: str) -> dict[str, Any] | None:
    """The newest whole checkpoint of a trial. Found in its folder, since Ray Train only knows those that it heard of."""
    from kiloseg.training.checkpoint import load_newest

    folders = [
        name for name in open_folder(directory).entries() if name.startswith("checkpoint_") or name == UNREPORTED
    ]
    return load_newest(*(inside(directory, name) for name in folders))


def _work(given: dict[str, Any]) -> None:
    """Runs in every worker. Errors that would come again at a retry are results of the trial, not crashes.

    Damaged data and full disks are crashes: tried again, perhaps elsewhere, and once they are mended --resume goes on.
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
