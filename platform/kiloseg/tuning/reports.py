"""What a trial says of itself: the `report` of its training, in the form that Ray hands to the study."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint

from kiloseg.storage.filesystems import holder, open_folder

logger = logging.getLogger(__name__)

METRIC = "val/miou"
STEP = "step"
HISTORY = "history"
"""Key of a result under which all reports since the result before it travel, validations and others."""
IOU_PER_CLASS = "val/iou_per_class"
BAD_SAMPLES = "bad_samples"
"""Key of a result that names the training samples that its run did without."""

CHECKPOINT = "checkpoint_path"
"""Key of a result that holds the folder of its checkpoint; Ray's name for it."""
RESUMED = "resumed_from"
"""Key of a result that repeats what a checkpoint knew: the step from which the run goes on."""

LEFT = "left"
"""Folder of a trial for the checkpoint of a run that was asked to leave."""

FAILED_OUTCOMES = ("oom", "diverged", "refused", "failed")


def run_of(trial: str) -> str:
    """Name of a trial's run on Ray Train, and of its folder in that of all checkpoints."""
    return f"train-{trial}"


def outcome_of(last: Mapping[str, Any], steps: int) -> str:
    """How a trial of so many steps ended, from its last result: finished, stopped (by the scheduler), or a failed outcome."""
    outcome = str(last.get("outcome", "failed"))
    return "stopped" if outcome == "finished" and last.get(STEP, 0) < steps else outcome


class Reporter:
    """The `report` of a trial's training: keeps every report, and hands them to Ray with each validation's checkpoint.

    Args:
        rank: of the worker.
        steps: of the whole run.
        left: folder, by path or URL, for the checkpoint of a run that leaves.
    """

    def __init__(self, *, rank: int, steps: int, left: str) -> None:
        self.rank = rank
        self.steps = steps
        self.left = left
        self.step = 0
        self._train_began = time.perf_counter()
        self._startup_s = 0.0
        self._history: list[dict[str, Any]] = []

    def begin(self, worker_began: float) -> None:
        """Marks the end of the worker's own start-up and the start of training."""
        self._train_began = time.perf_counter()
        self._startup_s = self._train_began - worker_began

    def __call__(self, report: dict[str, Any]) -> None:
        """Takes a report as `kiloseg.training.loop.train` gives it; one with a validation goes to Ray, with all those before it."""
        self.step = report[STEP]
        if METRIC in report:
            self._history.append(_numbers(report))
            checkpoint = None
            if self.rank == 0:
                folder = Path(tempfile.mkdtemp(prefix="kiloseg-upload-"))
                source = Path(report["checkpoint"])
                source.replace(folder / source.name)
                checkpoint = Checkpoint.from_directory(folder)
            self._send(report, checkpoint)
        elif "checkpoint" in report:
            self._keep(Path(report["checkpoint"]))
        else:
            self._history.append(_numbers(report))

    def resume(self, state: Mapping[str, Any]) -> None:
        """Reports again what a checkpoint knows: a death may come between a checkpoint and the arrival of its report."""
        self._history = list(state.get("reports", []))
        last = state["report"]
        if not last:
            return
        self.step = last[STEP]
        more = {RESUMED: state[STEP]}
        if last[STEP] == state[STEP]:
            more[CHECKPOINT] = holder(state["location"])[0].location
        self._send(last, None, **more)

    def _send(self, report: dict[str, Any], checkpoint: Checkpoint | None, **more: Any) -> None:
        result = self._result("finished") | _numbers(report) | {"peak_memory_kind": report["peak_memory_kind"]} | more
        if report.get(BAD_SAMPLES):
            result[BAD_SAMPLES] = report[BAD_SAMPLES]
        if self.step == self.steps:
            result[IOU_PER_CLASS] = report[IOU_PER_CLASS]
        self._history = []
        ray.train.report(result, checkpoint=checkpoint, delete_local_checkpoint_after_upload=checkpoint is not None)

    def _keep(self, checkpoint: Path) -> None:
        """Not by way of Ray, whose other processes may have been told to leave as well."""
        folder = open_folder(self.left)
        with folder.scratch() as scratch:
            shutil.copy(checkpoint, scratch)
            folder.put(scratch / checkpoint.name, checkpoint.name)

    def failed(self, outcome: str, error: Exception) -> dict[str, Any]:
        """The result of a trial that cannot work, with the worst score for the searcher."""
        logger.error("trial ends as %r: %s", outcome, error)
        return self._result(outcome) | {METRIC: 0.0, "error": str(error)[:500]}

    def _result(self, outcome: str) -> dict[str, Any]:
        return {
            STEP: self.step,
            "outcome": outcome,
            "oom": int(outcome == "oom"),
            "startup_s": self._startup_s,
            "train_s": time.perf_counter() - self._train_began,
            HISTORY: self._history,
        }


def _numbers(report: Mapping[str, Any]) -> dict[str, int | float]:
    return {name: value for name, value in report.items() if isinstance(value, int | float)}
