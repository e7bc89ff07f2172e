"""One trial on Ray Train: what runs in the worker, and what Tune calls.

Three processes make a trial: Tune's actor runs `run_trial`, Ray Train's controller watches the workers, and each worker
runs `_work`, which is `kiloseg.train.train` with a report that feeds MLflow and Ray. A worker that dies is started
again and goes on from the newest checkpoint, in the same MLflow run.
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

from kiloseg.config import Config, flatten, override

logger = logging.getLogger(__name__)

METRIC = "val/miou"
STEP = "step"

WORKER_ENVIRONMENT = {
    # The default of 2 s is waited for at every report.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
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
    study: str
    storage: str
    """Folder, absolute, that all nodes see; checkpoints go there."""
    resources: Resources
    tracking: Any
    """The study's `kiloseg.tracking.TrackedRun`; typed loosely so that Tune's actor need not import mlflow."""


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
            # Without a controller limit a worker that finds no room to start is waited for without end.
            failure_config=FailureConfig(max_failures=2, controller_failure_limit=3),
        ),
    )
    trainer.fit()


def _work(given: dict[str, Any]) -> None:
    """Runs in every worker. Errors that would come again at a retry are results of the trial, not crashes."""
    began = time.perf_counter()
    from kiloseg.memory import is_out_of_memory
    from kiloseg.train import NonFiniteLossError, train

    settings: TrialSettings = given["settings"]
    rank = ray.train.get_context().get_world_rank()
    reporter = _Reporter(settings, given["trial"], given["overrides"], rank)
    try:
        with tempfile.TemporaryDirectory(prefix="kiloseg-") as scratch:
            config = override(
                settings.base, {**given["overrides"], "trainer.output": scratch, "trainer.progress": False}
            )
            resume = ray.train.get_checkpoint()
            reporter.begin(began)
            if resume is None:
                last = train(config, reporter)
            else:
                with resume.as_directory() as directory:
                    last = train(config, reporter, resume=Path(directory))
        reporter.finish(last)
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
    """The `report` of a trial's training: every number to MLflow, validations with their checkpoint to Ray."""

    def __init__(self, settings: TrialSettings, trial: str, overrides: Mapping[str, Any], rank: int) -> None:
        self.rank = rank
        self._train_began = time.perf_counter()
        self.startup_s = 0.0
        self.step = 0
        self.run: Any = None
        if rank == 0:
            params = flatten(settings.base) | dict(overrides)
            self._track(lambda: self._open(settings, trial, params))

    def _open(self, settings: TrialSettings, trial: str, params: Mapping[str, Any]) -> None:
        self.run = settings.tracking.tracker.trial_run(settings.tracking, trial, params, {})

    def begin(self, worker_began: float) -> None:
        """Marks the end of the worker's own start-up (imports, finding the MLflow run) and the start of training."""
        self._train_began = time.perf_counter()
        self.startup_s = self._train_began - worker_began

    def __call__(self, report: dict[str, Any]) -> None:
        self.step = report[STEP]
        numbers: dict[str, Any] = {name: value for name, value in report.items() if isinstance(value, int | float)}
        if self.run is not None:
            logged = {name: value for name, value in numbers.items() if name != STEP}
            self._track(lambda: self.run.log_metrics(logged, step=self.step))
        if METRIC not in report:
            return
        checkpoint = None
        if self.rank == 0:
            folder = Path(tempfile.mkdtemp(prefix="kiloseg-upload-"))
            source = Path(report["checkpoint"])
            source.replace(folder / source.name)
            checkpoint = Checkpoint.from_directory(folder)
        numbers |= {
            "oom": 0,
            "outcome": "finished",
            "peak_memory_kind": report["peak_memory_kind"],
            "startup_s": self.startup_s,
            "train_s": time.perf_counter() - self._train_began,
        }
        ray.train.report(numbers, checkpoint=checkpoint, delete_local_checkpoint_after_upload=True)

    def finish(self, last: Mapping[str, Any]) -> None:
        """Logs what is known only at the end."""
        if self.run is None:
            return
        iou = last["val/iou_per_class"]
        table = {"class_id": list(range(len(iou))), "iou": [None if value != value else value for value in iou]}
        self._track(lambda: self.run.log_table(table, "iou_per_class.json"))
        self._track(lambda: self.run.set_tags({"outcome": "finished", "peak_memory_kind": last["peak_memory_kind"]}))
        self._track(lambda: self.run.log_metrics({"oom": 0}, step=self.step))

    def fail(self, outcome: str, error: Exception) -> None:
        """Records a trial that cannot work. The searcher gets the worst score, MLflow no score at all."""
        logger.error("trial ends as %r: %s", outcome, error)
        if self.run is not None:
            self._track(lambda: self.run.set_tags({"outcome": outcome, "error": str(error)[:500]}))
            self._track(lambda: self.run.log_metrics({"oom": int(outcome == "oom")}, step=self.step))
        ray.train.report(
            {STEP: self.step, METRIC: 0.0, "oom": int(outcome == "oom"), "outcome": outcome, "error": str(error)[:500]}
        )

    def _track(self, action: Any) -> None:
        """Tracking that fails costs its own numbers only: training goes on, and Ray's results hold every validation."""
        try:
            action()
        except Exception as error:
            logger.warning(
                "MLflow did not take numbers of step %d (%s: %s); training goes on",
                self.step,
                type(error).__name__,
                error,
            )
