"""What a search optimizes: mIoU alone, or mIoU against what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kiloseg.tuning.reports import FAILED_OUTCOMES, METRIC
from kiloseg.tuning.trial_row import TrialRow

Tradeoff = Literal["none", "memory", "time"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A number that a search makes large or small."""

    name: str
    """Name of the number."""
    label: str
    """Name and unit, for axes and tables."""
    mode: Literal["max", "min"]

    def of(self, numbers: Mapping[str, Any]) -> float | None:
        """Returns the number of a trial from its result or row, by names as in MLflow; None if it has none."""
        value = numbers.get(self.name)
        if self.name == TIME.name:
            images_per_s = numbers.get("train/images_per_s")
            value = 1000 / images_per_s if images_per_s else None
        return None if value is None or math.isnan(value) else float(value)


MIOU = Objective(name=METRIC, label="validation mIoU", mode="max")
MEMORY = Objective(name="peak_memory_gib", label="peak memory of a training step (GiB)", mode="min")
TIME = Objective(name="ms_per_image", label="training time per image (ms)", mode="min")

OBJECTIVES: dict[Tradeoff, tuple[Objective, ...]] = {"none": (MIOU,), "memory": (MIOU, MEMORY), "time": (MIOU, TIME)}
"""The objectives of a search by what mIoU is traded against."""


def values_of(result: Mapping[str, Any] | None, objectives: Sequence[Objective]) -> list[float] | None:
    """Returns a trial's value for each objective; None if it failed or a value is missing."""
    if not result or result.get("outcome") in FAILED_OUTCOMES:
        return None
    values = [value for objective in objectives if (value := objective.of(result)) is not None]
    return values if len(values) == len(objectives) else None


def numbers_of(row: TrialRow) -> dict[str, Any]:
    """Returns the numbers of a trial's row by their names in MLflow."""
    return {METRIC: row.miou, MEMORY.name: row.peak_memory_gib, "train/images_per_s": row.images_per_s}


def priced(rows: Sequence[TrialRow], cost: Objective) -> list[tuple[float, float, TrialRow]]:
    """Returns cost and mIoU of each trial that has both, and its row."""
    points = [(cost.of(numbers_of(row)), MIOU.of(numbers_of(row)), row) for row in rows]
    return [(price, miou, row) for price, miou, row in points if price is not None and miou is not None]


def pareto_front(rows: Sequence[TrialRow], cost: Objective) -> list[TrialRow]:
    """Returns the trials that no other trial beats: none has at least their mIoU at less cost, or more mIoU at no more cost.

    Args:
        rows: the trials; those without a mIoU or a cost are left out.
        cost: what is to be small.

    Returns:
        The trials in increasing order of cost and of mIoU. Of trials that are equal in both, it has the first.
    """
    front: list[TrialRow] = []
    best = -math.inf
    for _, miou, row in sorted(priced(rows, cost), key=lambda point: (point[0], -point[1])):
        if miou > best:
            front.append(row)
            best = miou
    return front
