"""Turns weights of classes into weights of pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_weights(weights_C: Tensor | None, labels_BHW: Tensor, known_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weight of every pixel in a sum over pixels, and the number that the sum is divided by to give the mean.

    Args:
        weights_C: the weight of every class, 0 or more; None: 1 for all.
        labels_BHW: int64, the class of every pixel; any number where `known_BHW` is False.
        known_BHW: bool, whether a pixel is labeled.

    Returns:
        Weights (B, H, W), 0 where a pixel is not labeled, and a scalar above 0.
    """
    if weights_C is None:
        return known_BHW, known_BHW.sum().clamp(min=1)
    pixels_BHW = weights_C[labels_BHW.where(known_BHW, 0)].mul_(known_BHW)
    # Without a labeled pixel of any weight the sum is 0, and so is the mean.
    total = pixels_BHW.sum()
    return pixels_BHW, torch.where(total > 0, total, 1)
