"""Converts the reports of a trial's training into the results that Ray passes to the study."""

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
from kiloseg.training.checkpoint_names import PATTERN
from kiloseg.training.report import Report, Validation

logger = logging.getLogger(__name__)

METRIC = "val/miou"
STEP = "step"
HISTORY = "history"
"""Key of a result that holds all reports since the previous result, with and without validations."""
IOU_PER_CLASS = "val/iou_per_class"
BAD_SAMPLES = "bad_samples"
"""Key of a result that names the training samples that the run has skipped."""

CHECKPOINT = "checkpoint_path"
"""Key of a result that holds the folder of its checkpoint. Ray defines this name."""
RESUMED = "resumed_from"
"""Key of a result that repeats the report in a checkpoint; holds the step from which the run continues."""

UNREPORTED = "left"
"""Folder of a trial for a checkpoint that no report names, because the run was preempted or failed in a validation."""

FAILED_OUTCOMES = ("oom", "diverged", "refused", "failed")


def run_of(trial: str) -> str:
    """Returns the name of a trial's run on Ray Train, which is also its folder inside that of all checkpoints."""
    return f"train-{trial}"


def outcome_of(last: Mapping[str, Any], steps: int) -> str:
    """Returns how a trial of `steps` steps ended, from its last result: finished, stopped (by the scheduler), or a failure."""
    outcome = str(last.get("outcome", "failed"))
    return "stopped" if outcome == "finished" and last.get(STEP, 0) < steps else outcome


class Reporter:
    """The `report` function of a trial's training. It keeps every report and sends them to Ray with each validation.

    Args:
        rank: rank of the worker.
        steps: number of steps of the whole run.
        unreported: folder, by path or URL, for a checkpoint that no report names.
    """

    def __init__(self, *, rank: int, steps: int, unreported: str) -> None:
        self.rank = rank
        self.steps = steps
        self.unreported = unreported
        self.step = 0
        self._train_began = time.perf_counter()
        self._startup_s = 0.0
        self._history: list[dict[str, Any]] = []

    def begin(self, worker_began: float) -> None:
        """Marks the end of the worker's startup and the start of training."""
        self._train_began = time.perf_counter()
        self._startup_s = self._train_began - worker_began

    def __call__(self, report: Report) -> None:
        """Takes a report of `kiloseg.training.loop.train`; one with a validation goes to Ray with all earlier unsent ones."""
        self.step = report.step
        self._history.append(report.numbers())
        if report.validation is None:
            return
        checkpoint = None
        if report.checkpoint is not None:
            folder = Path(tempfile.mkdtemp(prefix="kiloseg-upload-"))
            source = Path(report.checkpoint)
            source.replace(folder / source.name)
            checkpoint = Checkpoint.from_directory(folder)
        self._send(report, report.validation, checkpoint)

    def resume(self, stored: Mapping[str, Any]) -> None:
        """Repeats the reports in a checkpoint, because a crash may have come after the checkpoint but before its report."""
        self._history = list(stored.get("reports", []))
        last = Report.from_names(stored["report"])
        if last is None or last.validation is None:
            return
        self.step = last.step
        more = {RESUMED: stored[STEP]}
        if last.step == stored[STEP] and "location" in stored:  # it has none if it belongs to another trial
            more[CHECKPOINT] = holder(stored["location"])[0].location
        self._send(last, last.validation, None, **more)

    def keep(self, output: Path) -> None:
        """Keeps the newest checkpoint of a run that ends early, if there is one that no report has named.

        The checkpoint is not sent through Ray, whose other processes may be about to end too.
        """
        checkpoints = sorted(output.glob(PATTERN))
        if checkpoints:
            folder = open_folder(self.unreported)
            with folder.scratch() as scratch:
                shutil.copy(checkpoints[-1], scratch)
                folder.put(scratch / checkpoints[-1].name, checkpoints[-1].name)

    def _send(self, report: Report, validation: Validation, checkpoint: Checkpoint | None, **more: Any) -> None:
        kind = {"peak_memory_kind": validation.peaks.kind}
        result = self._result("finished") | report.numbers() | kind | more
        if validation.bad_samples:
            result[BAD_SAMPLES] = validation.bad_samples
        if self.step == self.steps:
            result[IOU_PER_CLASS] = validation.iou_per_class
        self._history = []
        ray.train.report(result, checkpoint=checkpoint, delete_local_checkpoint_after_upload=checkpoint is not None)

    def failed(self, outcome: str, error: Exception) -> dict[str, Any]:
        """Returns the result of a trial that cannot work, with the worst score for the searcher."""
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
