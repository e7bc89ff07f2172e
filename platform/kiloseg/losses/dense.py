"""Computes the dense baseline that kiloseg is compared with: one logit per class and pixel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kiloseg.losses.pixel_weights import mean_weights


def dense_cross_entropy(
    logits_BChw: Tensor, labels_BHW: Tensor, *, ignore_index: int = -1, class_weights_C: Tensor | None = None
) -> Tensor:
    """Computes the mean softmax cross-entropy over labeled pixels, as segmentation libraries do.

    The logits are upsampled bilinearly to the size of the labels, so memory is O(B * C * H * W) several times over. With class
    weights of shape (C,), the mean over pixels is weighted by them, as in torch.nn.CrossEntropyLoss.

    Returns:
        A scalar. It is 0, with zero gradients, if no pixel is labeled.
    """
    logits_BCHW = F.interpolate(logits_BChw.float(), size=labels_BHW.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits_BCHW, labels_BHW, weight=class_weights_C, ignore_index=ignore_index, reduction="sum")
    known_BHW = labels_BHW != ignore_index
    if class_weights_C is None:
        return total / known_BHW.sum().clamp(min=1)
    return total / mean_weights(class_weights_C, labels_BHW, known_BHW)[1]
