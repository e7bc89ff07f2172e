"""Defines the row that represents a trial in its study's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial as the study's table lists it."""

    trial: str
    outcome: str
    """How the trial ended: finished, stopped (by the scheduler), oom, diverged, refused or failed."""
    overrides: dict[str, Any]
    """The settings, by dotted name, that the study varies, with the trial's values."""
    miou: float | None
    """Best validation mIoU, in [0, 1]; None if there was no validation."""
    last_miou: float | None
    """mIoU of the last validation, in [0, 1]; used to compare trials with equal numbers of steps."""
    step: int
    """Training step of the last report."""
    peak_memory_gib: float | None
    """Peak memory of training steps, in GiB."""
    val_peak_memory_gib: float | None
    """Peak memory of predicting a validation batch, in GiB."""
    images_per_s: float | None
    seconds: float
    """Seconds from the trial's start to its last report."""
    train_seconds: float
    """The part of `seconds` that the training function itself takes; the rest is startup and orchestration."""
    error: str = ""
    checkpoint: str | None = None
    """Folder of the best checkpoint, by path or URL; None if there is none."""
    continues: str = ""
    """The trial of fewer steps that this one went on from; empty if it began anew."""
    folder: str = ""
    """Folder of all its checkpoints, by path or URL."""
