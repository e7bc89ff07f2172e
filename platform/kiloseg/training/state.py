"""Defines the state of a run between two steps, which can be saved as a checkpoint and loaded from one."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from kiloseg.config import Config
from kiloseg.data.class_weights import class_weights
from kiloseg.data.classes import record_classes
from kiloseg.data.description import read_info
from kiloseg.data.reading.bad_samples import BadSamples
from kiloseg.models import build_segmenter
from kiloseg.overrides import differences, flatten, override
from kiloseg.training.checkpoint import save_checkpoint
from kiloseg.training.initial import initial_state, take_over
from kiloseg.training.meters import RunningMean
from kiloseg.training.optimizer import build_optimizer
from kiloseg.training.peaks import Peaks
from kiloseg.training.report import Report
from kiloseg.training.workers import Workers


class TrainState:
    """Holds model, optimizer, position and meters of a run.

    Args:
        config: the run.
        num_classes: C.
        workers: the group that trains; each worker has its own state.
        bad_samples: the samples that this worker's loader has left out.
        resumes: whether `load` follows, so that the weights that a run starts from are not needed.

    Raises:
        ValueError: the model cannot be built, or the weights or class weights cannot be used.
    """

    def __init__(
        self, config: Config, num_classes: int, workers: Workers, bad_samples: BadSamples, *, resumes: bool = False
    ) -> None:
        self.config = config
        self.num_classes = num_classes
        self.workers = workers
        self.bad_samples = bad_samples
        torch.manual_seed(config.trainer.seed)
        # Every checkpoint contains a record of its classes, since a model may outlive its data set.
        self.classes = None if workers.rank else record_classes(config.data)
        initial = None if resumes else initial_state(config.model.weights)
        random = override(config, {"model.weights": "none"}) if resumes or initial is not None else config
        self.segmenter = build_segmenter(random, num_classes, workers.device)
        self.origin: str | None = None
        """What the run took over from the checkpoint that `model.weights` names, in a sentence; None if it names none."""
        if initial is not None:
            self.origin = take_over(self.segmenter, initial, self.classes or record_classes(config.data))
        weights = class_weights(config.loss.class_weights, config.data, read_info(config.data.path))
        self.segmenter.head.weigh_classes(None if weights is None else torch.from_numpy(weights).to(workers.device))
        self.optimizer = build_optimizer(self.segmenter, config.optimizer)
        self.step = 0
        """Number of optimization steps taken."""
        self.unreported = False
        """Whether a report or validation that is due after the last step is still to come."""
        self.mean_loss = RunningMean(workers.device)
        self.peaks = Peaks(workers.device, self.segmenter, self.optimizer)
        self.reports: list[dict[str, int | float]] = []
        """Numbers of all reports, so that reports that were lost can be delivered again on resumption."""
        self.last_validated: Report | None = None
        """The report of the last validation."""

    @property
    def validation_due(self) -> bool:
        """Returns whether a validation follows the last step."""
        trainer = self.config.trainer
        return self.step == trainer.steps or (trainer.validate_every > 0 and self.step % trainer.validate_every == 0)

    @property
    def report_due(self) -> bool:
        """Returns whether a report follows the last step, as it does with every validation."""
        return self.validation_due or self.step % self.config.trainer.report_every == 0

    @property
    def best_step(self) -> int | None:
        """Returns the step of the validation with the best val/miou so far, the first of equals; None before the first."""
        validated = [report for report in self.reports if "val/miou" in report]
        return int(max(validated, key=lambda report: report["val/miou"])["step"]) if validated else None

    @property
    def patience_is_over(self) -> bool:
        """Returns whether `trainer.patience` validations in a row have not been better than the best before them."""
        best, patience = self.best_step, self.config.trainer.patience
        if not patience or best is None:
            return False
        return sum("val/miou" in report and report["step"] > best for report in self.reports) >= patience

    def add_report(self, report: Report) -> Report:
        """Records the report on the last step and marks the step as reported. Saves a report that has a validation.

        Returns:
            The report to deliver, which names its checkpoint.
        """
        self.reports.append(report.numbers())
        self.mean_loss.reset()
        self.unreported = False
        if report.validation is None:
            return report
        self.last_validated = report
        self.last_validated = dataclasses.replace(report, checkpoint=self.save())
        return self.last_validated

    def save(self) -> str | None:
        """Writes a checkpoint to `trainer.output`. Every worker must call this.

        Returns:
            Its path or URL in rank 0, which is the only one that writes; None in others.

        Raises:
            OSError: it could not be written.
        """
        bad_samples = self.bad_samples.state(self.workers.world_size, self.workers.device)
        if self.workers.rank:
            return None
        last = self.last_validated
        content = {
            "config": flatten(self.config),
            "num_classes": self.num_classes,
            "classes": self.classes,
            "model": self.segmenter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "report": {} if last is None else dict(dataclasses.replace(last, checkpoint=None)),
            "reports": self.reports,
            "peaks": self.peaks.state_dict(),
            "bad_samples": bad_samples,
            "unreported": self.unreported,
            "mean_loss": self.mean_loss.state(),
        }
        trainer = self.config.trainer
        best = self.best_step if trainer.patience else None
        return str(save_checkpoint(trainer.output, self.step, content, keep=trainer.keep_checkpoints, also=best))

    def load(self, stored: dict[str, Any]) -> None:
        """Continues from the content of a checkpoint, whose tensors are removed from it.

        Raises:
            ValueError: it belongs to a run that would have a different result.
        """
        changes = differences(flatten(self.config), stored["config"])
        if changes:
            raise ValueError(
                f"the checkpoint belongs to another run ({changes}); resume with its settings, or start again in another "
                "trainer.output"
            )
        self.segmenter.load_state_dict(stored.pop("model"))
        self.optimizer.load_state_dict(stored.pop("optimizer"))
        self.step = stored["step"]
        self.last_validated = Report.from_names(stored["report"])
        # Older checkpoints do not have newer keys.
        self.reports = list(stored.get("reports", []))
        self.peaks.load_state_dict(stored["report"] | stored.get("peaks", {}))
        self.unreported = stored.get("unreported", False)
        self.mean_loss.load_state(stored.get("mean_loss", (0.0, 0)))
        if "bad_samples" in stored:
            self.bad_samples.restore(stored["bad_samples"], self.workers.rank)
