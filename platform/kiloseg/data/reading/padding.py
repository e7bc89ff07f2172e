"""Stacks whole images of different sizes into one batch."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.data.reading.batches import Batch

STRIDE = 32
"""The sides of a batch are multiples of this many pixels, the stride of the coarsest feature map of the backbones."""


def to_tensors(image_HW3: np.ndarray, labels_HW: np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns an image as uint8 of shape (3, H, W), and its labels as int64 of shape (H, W)."""
    return torch.from_numpy(image_HW3.transpose(2, 0, 1).copy()), torch.from_numpy(labels_HW).long()


def stack(samples: list[tuple[Tensor, Tensor]]) -> Batch:
    """Returns images and labels of any sizes as one batch, padded at the right and below with zeros and ignored pixels."""
    height = round_up(max(labels.shape[0] for _, labels in samples))
    width = round_up(max(labels.shape[1] for _, labels in samples))
    images, labels = [], []
    for image, label in samples:
        padding = (0, width - label.shape[1], 0, height - label.shape[0])
        images.append(F.pad(image, padding))
        labels.append(F.pad(label, padding, value=-1))
    return Batch(torch.stack(images), torch.stack(labels))


def round_up(side: int) -> int:
    """Returns the next multiple of STRIDE."""
    return -(-side // STRIDE) * STRIDE
