"""Measures how well a score separates pixels of two kinds, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor


class Histogram:
    """Counts scores in bins of equal width.

    Args:
        low: lower end of the first bin; lower scores count there.
        high: upper end of the last bin; higher scores count there.
    """

    BINS = 4000

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.counts_b = torch.zeros(self.BINS, dtype=torch.int64)

    def update(self, scores: Tensor) -> None:
        """Adds scores of any shape; NaN is not counted."""
        scores = scores[~scores.isnan()]
        bins = ((scores - self.low) / (self.high - self.low) * self.BINS).long().clamp_(0, self.BINS - 1)
        self.counts_b += torch.bincount(bins.flatten(), minlength=self.BINS).cpu()

    def quantile(self, share: float) -> float:
        """Returns the lower end of the bin that a share of the scores, 0 to 1, lies below; NaN if there are none."""
        total = int(self.counts_b.sum())
        if not total:
            return float("nan")
        below = torch.cat([torch.zeros(1, dtype=torch.int64), self.counts_b.cumsum(0)])
        found = int(torch.searchsorted(below, torch.tensor(int(share * total)), right=True)) - 1
        return self.low + min(found, self.BINS - 1) * (self.high - self.low) / self.BINS


def auroc(higher: Histogram, lower: Histogram) -> float:
    """Returns the area under the ROC curve: how often a score of `higher` exceeds one of `lower`, where equal bins count half.

    Source: https://doi.org/10.1016/j.patrec.2005.10.010. NaN if one of them is empty.
    """
    ups, downs = higher.counts_b.double(), lower.counts_b.double()
    below = downs.cumsum(0) - downs / 2
    return ((ups * below).sum() / (ups.sum() * downs.sum())).item()
