"""Ranks the trials of a study by mIoU, within an amount of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kiloseg.tuning.trial_row import TrialRow


def best_rows(rows: Sequence[TrialRow], within_gib: float | None = None) -> list[TrialRow]:
    """Returns the trials with a mIoU, the highest first; NaN, which does not compare, counts as none.

    Args:
        rows: the trials.
        within_gib: the most memory in GiB that a trial's training steps and validation may have needed; None: any.
    """
    scored = [(row.miou, row) for row in rows if row.miou is not None and not math.isnan(row.miou)]
    if within_gib is not None:
        scored = [(miou, row) for miou, row in scored if _peak_gib(row) <= within_gib]
    return [row for _, row in sorted(scored, key=lambda pair: pair[0], reverse=True)]


def best_row(rows: Sequence[TrialRow], within_gib: float | None = None) -> TrialRow | None:
    """Returns the first of `best_rows`, or None if there is none."""
    return next(iter(best_rows(rows, within_gib)), None)


def _peak_gib(row: TrialRow) -> float:
    """Returns the larger one of a trial's two peaks; infinity if neither is known."""
    peaks = [peak for peak in (row.peak_memory_gib, row.val_peak_memory_gib) if peak is not None]
    return max(peaks, default=math.inf)
