"""Measures whether the confidence of a model matches its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor


class CalibrationError:
    """Computes the expected calibration error over bins of equal width (https://arxiv.org/abs/1706.04599)."""

    BINS = 15

    def __init__(self) -> None:
        # Rows: number of pixels, number of correct pixels, sum of confidences.
        self.sums_3b = torch.zeros((3, self.BINS), dtype=torch.float64)

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Adds confidences from 0 to 1 and whether each prediction was correct; both are one-dimensional."""
        bins = (confidence * self.BINS).long().clamp_(0, self.BINS - 1)
        for row, values in zip(self.sums_3b, (torch.ones_like(confidence), right, confidence), strict=True):
            row += torch.bincount(bins, values.double(), minlength=self.BINS).cpu()

    def compute(self) -> float:
        """Returns the mean distance of confidence and accuracy, from 0 to 1; NaN if nothing was added."""
        pixels_b, right_b, confidence_b = self.sums_3b
        return ((right_b - confidence_b).abs().sum() / pixels_b.sum()).item()
