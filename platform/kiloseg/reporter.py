"""What a trial says of itself: the `report` of its training, in the form that Ray hands to the study."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint

logger = logging.getLogger(__name__)

METRIC = "val/miou"
STEP = "step"
HISTORY = "history"
"""Key of a result under which all reports since the result before it travel, validations and others."""
IOU_PER_CLASS = "val/iou_per_class"

FAILED_OUTCOMES = ("oom", "diverged", "refused", "failed")


def outcome_of(last: Mapping[str, Any], steps: int) -> str:
    """How a trial of so many steps ended, from its last result: finished, stopped (by the scheduler), or a failed outcome."""
    outcome = str(last.get("outcome", "failed"))
    return "stopped" if outcome == "finished" and last.get(STEP, 0) < steps else outcome


class Reporter:
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
        """Takes a report as `kiloseg.train.train` gives it; one with a validation goes to Ray, with all those before it."""
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
