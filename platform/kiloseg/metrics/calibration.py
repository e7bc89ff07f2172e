"""Whether a model is as sure as it is right."""

from __future__ import annotations

import torch
from torch import Tensor


class CalibrationError:
    """Expected calibration error over bins of equal width (https://arxiv.org/abs/1706.04599)."""

    BINS = 15

    def __init__(self) -> None:
        # Rows: pixels, right ones, sum of confidences.
        self.sums_3b = torch.zeros((3, self.BINS), dtype=torch.float64)

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Adds confidences from 0 to 1 and whether each was right; both of one dimension."""
        bins = (confidence * self.BINS).long().clamp_(0, self.BINS - 1)
        for row, values in zip(self.sums_3b, (torch.ones_like(confidence), right, confidence), strict=True):
            row += torch.bincount(bins, values.double(), minlength=self.BINS).cpu()

    def compute(self) -> float:
        """From 0 to 1: the mean distance of confidence and accuracy; NaN where nothing was added."""
        pixels_b, right_b, confidence_b = self.sums_3b
        return ((right_b - confidence_b).abs().sum() / pixels_b.sum()).item()
