"""Measures whether the confidence of a model matches its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


class CalibrationError:
    """Computes the expected calibration error over bins of equal width (https://arxiv.org/abs/1706.04599)."""

    BINS = 15
    UNIT = 2**-24
    """Confidences are summed as whole numbers of this, so that the order of the pixels cannot matter."""

    def __init__(self) -> None:
        # Rows: number of pixels, number of correct pixels, sum of confidences in units.
        self.sums_3b = torch.zeros((3, self.BINS), dtype=torch.int64)

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Adds confidences from 0 to 1 and whether each prediction was correct; both are one-dimensional."""
        bins = (confidence * self.BINS).long().clamp_(0, self.BINS - 1)
        units = (confidence.double() / self.UNIT).round_().long()
        for row, values in zip(self.sums_3b, (torch.ones_like(units), right.long(), units), strict=True):
            row += torch.zeros_like(row, device=bins.device).index_add_(0, bins, values).cpu()

    def reliability(self) -> Tensor:
        """Returns, for each bin, the number of pixels, the share of correct ones and the mean confidence: float64 (3, BINS)."""
        pixels_b, right_b, units_b = self.sums_3b.double()
        return torch.stack([pixels_b, right_b / pixels_b, units_b * self.UNIT / pixels_b])

    def compute(self) -> float:
        """Returns the mean distance of confidence and accuracy, from 0 to 1; NaN if nothing was added."""
        pixels_b, right_b, units_b = self.sums_3b.double()
        return ((right_b - units_b * self.UNIT).abs().sum() / pixels_b.sum()).item()
