"""A trial as a row of its study's table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial as the study's table lists it."""

    trial: str
    outcome: str
    """finished, stopped (by the scheduler), oom, diverged, refused or failed."""
    overrides: dict[str, Any]
    """Its settings by dotted names, where they are not those of all trials."""
    miou: float | None
    """Best validation mIoU, in [0, 1]; None where there was none."""
    last_miou: float | None
    """mIoU of the last validation, by which trials of equal numbers of steps are compared."""
    step: int
    """Step of the last report."""
    peak_memory_gib: float | None
    """Peak memory of training steps."""
    val_peak_memory_gib: float | None
    """Peak memory of predicting a validation batch."""
    images_per_s: float | None
    seconds: float
    """From the trial's start to its last report."""
    train_seconds: float
    """The part of that in the training function itself; the rest is start-up and orchestration."""
    error: str = ""
    checkpoint: str | None = None
    """Folder of the best checkpoint, by path or URL."""
