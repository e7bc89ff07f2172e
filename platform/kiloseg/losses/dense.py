"""Computes the dense baseline that kiloseg is compared with: one logit per class and pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dense_cross_entropy(logits_BChw: Tensor, labels_BHW: Tensor, *, ignore_index: int = -1) -> Tensor:
    """Computes the mean softmax cross-entropy over labeled pixels, as segmentation libraries do.

    The logits are upsampled bilinearly to the size of the labels, so memory is O(B * C * H * W) several times over.

    Returns:
        A scalar. It is 0, with zero gradients, if no pixel is labeled.
    """
    logits_BCHW = F.interpolate(logits_BChw.float(), size=labels_BHW.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits_BCHW, labels_BHW, ignore_index=ignore_index, reduction="sum")
    return total / (labels_BHW != ignore_index).sum().clamp(min=1)
