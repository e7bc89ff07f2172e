"""Trains the best trials of a search again with other seeds, so that the winner is not the luckiest trial."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas

from kiloseg.tuning.trial_row import TrialRow

SEED = "trainer.seed"


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A trial of a search and the trials that repeat it with other seeds."""

    trial: TrialRow
    """The trial of the search."""
    repeats: list[TrialRow]
    """Its repetitions; those that failed have no mIoU."""

    @property
    def mious(self) -> list[float]:
        """Best validation mIoU, in [0, 1], of each repetition that has one. That of the search is left out: it was selected."""
        return [row.miou for row in self.repeats if row.miou is not None and not math.isnan(row.miou)]

    @property
    def mean(self) -> float:
        """Mean of `mious`; NaN without any."""
        return statistics.fmean(self.mious) if self.mious else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of `mious` (of a sample); NaN with fewer than two."""
        return statistics.stdev(self.mious) if len(self.mious) > 1 else math.nan

    @property
    def best(self) -> TrialRow:
        """The repetition with the highest mIoU, or the trial itself without any."""
        scored = [row for row in self.repeats if row.miou is not None and not math.isnan(row.miou)]
        return max(scored, key=lambda row: row.miou or 0.0, default=self.trial)


def points_to_repeat(trials: Sequence[TrialRow], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the settings of every repetition: each trial with each seed."""
    return [{**row.overrides, SEED: seed} for row in trials for seed in seeds]


def confirmations(trials: Sequence[TrialRow], repeats: Sequence[TrialRow]) -> list[Confirmation]:
    """Groups repetitions by the trial that they repeat, the highest mean first; NaN is last.

    Args:
        trials: trials of the search.
        repeats: the trials that ran at `points_to_repeat`. They may have further settings, at the values of the base run.
    """
    found = []
    for row in trials:
        wanted = {name: value for name, value in row.overrides.items() if name != SEED}
        alike = [other for other in repeats if wanted.items() <= other.overrides.items()]
        found.append(Confirmation(trial=row, repeats=alike))
    return sorted(found, key=lambda each: -math.inf if math.isnan(each.mean) else each.mean, reverse=True)


def confirmation_table(found: Sequence[Confirmation]) -> pandas.DataFrame:
    """Returns a table with a row per repeated trial: its settings, and mean and spread of mIoU over the seeds."""
    return pandas.DataFrame(
        [
            {
                "trial": each.trial.trial,
                **{name: value for name, value in each.trial.overrides.items() if name != SEED},
                "val/miou of the search": each.trial.miou,
                "seeds": len(each.mious),
                "mean": each.mean,
                "standard deviation": each.spread,
                "lowest": min(each.mious, default=math.nan),
                "highest": max(each.mious, default=math.nan),
            }
            for each in found
        ]
    )
