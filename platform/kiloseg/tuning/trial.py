"""Runs one trial on Ray Train: the function that Tune calls, and the function that runs in the workers.

A trial has two kinds of processes: Tune's actor runs `run_trial`, in which Ray Train's controller watches the workers, and each
worker runs `_work`, which calls `kiloseg.training.loop.train` with a `report` that sends results to Ray. If any of them dies,
Tune restarts the trial from its newest checkpoint. A worker that receives SIGTERM writes a checkpoint and exits.

Numbers reach MLflow through the study's driver (see `kiloseg.tuning.callbacks.recorder`). So there is one writer for any
number of trials, and no worker spends the 2.5 s of CPU that importing mlflow and opening its database take. Only the worker
imports torch (2 s of CPU per process), so modules that need it are imported where they are used.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
from ray import tune
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from kiloseg.config import Config
from kiloseg.data.reading.shared_memory import TRIALS_VARIABLE
from kiloseg.overrides import override
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import inside, open_folder
from kiloseg.training import preemption
from kiloseg.tuning.cluster import Resources
from kiloseg.tuning.ray_workarounds.controller import ReportToTune, TrainerInTrial
from kiloseg.tuning.ray_workarounds.sigterm import SingleWorkerConfig
from kiloseg.tuning.ray_workarounds.train_snapshot import drop_damaged_snapshot
from kiloseg.tuning.reports import METRIC, UNREPORTED, Reporter, run_of

VERDICT = "verdict"
"""Folder of a trial. If there are several workers, one that finds that the trial cannot work writes the result here."""
FINAL = "final.json"
"""File in that folder with the result of a trial that must not be started again."""

ALLOCATED = 0.95
"""Part of a process's share of a GPU that its tensors may take, with fragmentation; plans take at most nine tenths."""


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """The settings that all trials of a study share; picklable."""

    base: Config
    storage: str
    """Folder for checkpoints that all nodes see, by absolute path or URL."""
    resources: Resources
    """The share of the cluster that each trial gets."""
    watch: str
    """The name under which trials write down what their workers hold, to be freed if they die."""
    continues: Mapping[str, str] = field(default_factory=dict)
    """Folders of trials that these trials continue, by path or URL, by `settings_key` of their settings."""
    trials_per_node: int = 1
    """How many trials run on one node at once, of which the shared memory of a node must hold the batches."""


def settings_key(overrides: Mapping[str, Any]) -> str:
    """Returns a trial's settings by dotted names as a key for dictionaries."""
    return json.dumps(dict(overrides), sort_keys=True)


def run_trial(overrides: Mapping[str, Any], settings: TrialSettings) -> None:
    """Trains `settings.base` with `overrides` (by dotted names) in its own Ray Train run. Tune calls this in an actor."""
    name = run_of(tune.get_context().get_trial_id())
    directory = inside(settings.storage, name)
    verdicts = open_folder(inside(directory, VERDICT))
    if FINAL in verdicts.entries():
        tune.report(json.loads(verdicts.read(FINAL)))
        return
    open_folder(directory).remove(VERDICT)
    drop_damaged_snapshot(directory)
    resources = settings.resources
    scaling = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        scaling["GPU"] = resources.gpus_per_worker
    trainer = _trainer_class(resources)(
        _work,
        watch=settings.watch,
        train_loop_config={"overrides": dict(overrides), "settings": settings, "directory": directory},
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=scaling
        ),
        run_config=RunConfig(
            name=name,
            storage_path=settings.storage,
            callbacks=[ReportToTune()],
            # Two are kept, so that there is an earlier one if the newest turns out to be damaged.
            checkpoint_config=CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=METRIC),
            # A worker that dies ends the run, and Tune restarts the trial from its newest checkpoint. If the controller
            # replaced dead workers, it would also do so when Tune ends a trial and the worker happens to die first. Nothing
            # would then release the placement group of the replacement, which would keep its CPU or GPU permanently.
            # Without a controller limit, Train would wait forever for a worker that finds no room to start.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
    )
    try:
        trainer.fit()
    except Exception:
        names = [name for name in verdicts.entries() if name.endswith(".json")]
        if not names:
            raise  # for example, a process was lost: Tune restarts the trial
        tune.report(json.loads(verdicts.read(names[0])))


def end_as_oom(checkpoints: str, trial: str, step: int, reason: str) -> None:
    """Makes a trial end as out of memory at its next start.

    Args:
        checkpoints: folder of all trials' checkpoints, by path or URL.
        trial: the trial's id.
        step: the step of its last report.
        reason: the error for the study's table.
    """
    reporter = Reporter(rank=0, steps=step, unreported="")
    reporter.step = step
    result = reporter.failed("oom", MemoryError(reason))
    open_folder(inside(checkpoints, f"{run_of(trial)}/{VERDICT}")).write(FINAL, json.dumps(result).encode())


def _trainer_class(resources: Resources) -> Callable[..., DataParallelTrainer]:
    if resources.workers == 1:
        # For a process group of one, Tune's actor would import torch, which takes 2 s of CPU.
        return functools.partial(TrainerInTrial, backend_config=SingleWorkerConfig())
    from ray.train.torch import TorchTrainer

    from kiloseg.tuning.ray_workarounds.sigterm_process_group import ListeningTorchConfig

    class TorchGroup(TrainerInTrial, TorchTrainer):
        pass

    backend = "nccl" if resources.gpus_per_worker else "gloo"
    return functools.partial(TorchGroup, torch_config=ListeningTorchConfig(backend=backend))


def keep_to_share(resources: Resources) -> None:
    """Limits the GPU memory of this process if it shares its GPU, so that what needs more fails here and not in a neighbor.

    torch then raises its out-of-memory error at the limit, as on a GPU of that size. CUDA's own memory of a process is not
    counted by torch; the rest of the share, `1 - ALLOCATED`, is for it.
    """
    import torch

    if resources.shares_gpu and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(ALLOCATED * resources.gpus_per_worker)


def _newest_state(directory: str) -> dict[str, Any] | None:
    """Finds the newest intact checkpoint in a trial's folder; Ray Train knows only those that were reported to it."""
    from kiloseg.training.checkpoint import load_newest

    folders = [
        name for name in open_folder(directory).entries() if name.startswith("checkpoint_") or name == UNREPORTED
    ]
    return load_newest(*(inside(directory, name) for name in folders))


def _earlier_state(directory: str, steps: int) -> dict[str, Any]:
    """Returns the newest intact checkpoint of a trial of fewer steps, as one of a trial of `steps` steps.

    The learning rate follows from the step and the number of steps (`learning_rate_factor`), and so jumps up again.

    Raises:
        ValueError: the trial has no intact checkpoint.
    """
    state = _newest_state(directory)
    if state is None:
        raise ValueError(f"there is no intact checkpoint in {open_folder(directory).name} to go on from")
    state["config"] = {**state["config"], "trainer.steps": steps}
    del state["location"]  # Ray would look for it among this trial's checkpoints
    return state


def _work(given: dict[str, Any]) -> None:
    """Trains in one worker. Errors that would recur at a retry are results of the trial, not crashes.

    Damaged data and full disks are crashes: the trial is retried, perhaps on another node, and --resume continues it once
    they are repaired.
    """
    began = time.perf_counter()
    from kiloseg.memory import is_out_of_memory
    from kiloseg.training.loop import NonFiniteLossError, train

    settings: TrialSettings = given["settings"]
    directory = given["directory"]
    os.environ[TRIALS_VARIABLE] = str(settings.trials_per_node)
    keep_to_share(settings.resources)
    rank = ray.train.get_context().get_world_rank()
    reporter = Reporter(rank=rank, steps=settings.base.trainer.steps, unreported=inside(directory, UNREPORTED))
    try:
        with tempfile.TemporaryDirectory(prefix="kiloseg-") as scratch:
            config = override(
                settings.base, {**given["overrides"], "trainer.output": scratch, "trainer.progress": False}
            )
            state = _newest_state(directory)
            earlier = settings.continues.get(settings_key(given["overrides"]))
            if state is None and earlier is not None:
                state = _earlier_state(earlier, settings.base.trainer.steps)
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
        # The other workers may be waiting in a collective, which only an error in this one ends. The result stays in a file.
        open_folder(inside(directory, VERDICT)).write(f"{rank}.json", json.dumps(result).encode())
        raise
