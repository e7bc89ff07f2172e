"""One trial on Ray Train: what runs in the worker, and what Tune calls.

Three processes make a trial: Tune's actor runs `run_trial`, Ray Train's controller watches the workers, and each worker
runs `_work`, which is `kiloseg.train.train` with a report that feeds Ray. After a death of any
of them Tune starts the trial again, from its newest checkpoint.

Numbers reach MLflow through the study's driver (see `kiloseg.search`): one writer, whatever the number of trials, and no
worker pays the 2.5 s of CPU that importing mlflow and opening its database take.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray import tune
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from kiloseg.config import Config, override

logger = logging.getLogger(__name__)

METRIC = "val/miou"
STEP = "step"
HISTORY = "history"
"""Key of a result under which all reports since the result before it travel, validations and others."""
IOU_PER_CLASS = "val/iou_per_class"

WORKER_ENVIRONMENT = {
    # The default of 2 s is waited for at every report.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Watches for preempted cloud nodes; costs seconds at the start and end of a trial.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Set in the driver before Ray starts; Ray hands them on to the controllers."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets."""

    workers: int = 1
    """Training processes, each with a GPU of its own where there are any."""
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise ValueError(f"{self}: expected at least 1 worker, more than 0 CPUs and 0 or more GPUs a worker")


@dataclass(frozen=True, kw_only=True)
class TrialSettings:
    """What is the same for all trials of a study; picklable."""

    base: Config
    storage: str
    """Folder, absolute, that all nodes see; checkpoints go there."""
    resources: Resources


def run_trial(overrides: Mapping[str, Any], settings: TrialSettings) -> None:
    """A Tune function: trains `settings.base` with `overrides` (dotted names) in a Ray Train run of its own."""
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    trial = tune.get_context().get_trial_id()
    resources = settings.resources
    scaling = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        scaling["GPU"] = resources.gpus_per_worker
    trainer = TorchTrainer(
        _work,
        train_loop_config={"overrides": dict(overrides), "settings": settings, "trial": trial},
        scaling_config=ScalingConfig(
            num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=scaling
        ),
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
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


def _work(given: dict[str, Any]) -> None:
    """Runs in every worker. Errors that would come again at a retry are results of the trial, not crashes."""
    began = time.perf_counter()
    from kiloseg.memory import is_out_of_memory
    from kiloseg.train import NonFiniteLossError, train

    settings: TrialSettings = given["settings"]
    reporter = _Reporter(rank=ray.train.get_context().get_world_rank(), steps=settings.base.trainer.steps)
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


class _Reporter:
    """The `report` of a trial's training: keeps every report, and hands them to Ray with each validation's checkpoint."""

    def __init__(self, *, rank: int, steps: int) -> None:
        self.rank = rank
        self.steps = steps
        self.step = 0
        self._train_began = time.perf_counter()
        self.reported = False
        self._startup_s = 0.0
        self._history: list[dict[str, Any]] = []

    def begin(self, worker_began: float) -> None:
        """Marks the end of the worker's own start-up and the start of training."""
        self._train_began = time.perf_counter()
        self._startup_s = self._train_began - worker_began

    def __call__(self, report: dict[str, Any]) -> None:
        self.step = report[STEP]
        self._history.append({name: value for name, value in report.items() if isinstance(value, int | float)})
        if METRIC not in report:
            return
        checkpoint = None
        if self.rank == 0:
            folder = Path(tempfile.mkdtemp(prefix="kiloseg-upload-"))
            source = Path(report["checkpoint"])
            source.replace(folder / source.name)
            checkpoint = Checkpoint.from_directory(folder)
        self._send(report, self._history[-1], checkpoint, delete_local=True)

    def repeat(self, last: dict[str, Any], checkpoint: Checkpoint) -> None:
        """Reports a run again that had ended before it was resumed: Tune refuses a trial that ends without its metric."""
        self.step = last[STEP]
        numbers = {name: value for name, value in last.items() if isinstance(value, int | float)}
        self._send(last, numbers, checkpoint, delete_local=False)

    def _send(
        self, report: dict[str, Any], numbers: dict[str, Any], checkpoint: Checkpoint | None, *, delete_local: bool
    ) -> None:
        result = self._result("finished") | numbers | {"peak_memory_kind": report["peak_memory_kind"]}
        if self.step == self.steps:
            result[IOU_PER_CLASS] = report[IOU_PER_CLASS]
        self._history = []
        self.reported = True
        ray.train.report(result, checkpoint=checkpoint, delete_local_checkpoint_after_upload=delete_local)

    def fail(self, outcome: str, error: Exception) -> None:
        """Records a trial that cannot work, with the worst score for the searcher."""
        logger.error("trial ends as %r: %s", outcome, error)
        ray.train.report(self._result(outcome) | {METRIC: 0.0, "error": str(error)[:500]})

    def _result(self, outcome: str) -> dict[str, Any]:
        return {
            STEP: self.step,
            "outcome": outcome,
            "oom": int(outcome == "oom"),
            "startup_s": self._startup_s,
            "train_s": time.perf_counter() - self._train_began,
            HISTORY: self._history,
        }
