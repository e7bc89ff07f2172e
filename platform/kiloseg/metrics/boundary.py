"""Computes boundary IoU from three counters per class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.metrics.iou import IoU
from kiloseg.ops.tiles import tiles

BAND_PIXELS = 2**19
"""Target number of pixels of a band of rows."""


class BoundaryIoU(IoU):
    """Computes the IoU of the pixels of a class within a distance of its outline, in labels and in predictions.

    Source: https://arxiv.org/abs/2103.16562. The distance is 2 % of the image's diagonal in the chessboard metric (a king's moves).
    The image's edge and ignored pixels count as outside of every class. All classes of an image are computed at once.
    """

    RATIO = 0.02

    def update(self, predicted_BHW: Tensor, labels_BHW: Tensor) -> None:
        """Adds a batch in the same way as `IoU.update`."""
        height, width = labels_BHW.shape[1:]
        distance = max(round(self.RATIO * math.hypot(height, width)), 1)
        # In bands of rows, with the rows that their pixels can reach, since pooling takes 30 bytes a pixel.
        for rows in tiles(height, max(BAND_PIXELS // width, 2 * distance)):
            first, last = max(rows.start - distance, 0), min(rows.stop + distance, height)
            own = slice(rows.start - first, rows.stop - first)
            self._update_band(predicted_BHW[:, first:last], labels_BHW[:, first:last], own, distance)

    def _update_band(self, predicted_BHW: Tensor, labels_BHW: Tensor, own: slice, distance: int) -> None:
        """Adds the rows `own`; the others are only looked at to find outlines."""
        known_BHW = labels_BHW != self.ignore_index
        predicted_BHW = predicted_BHW.where(known_BHW, -1)
        near_label_BHW = known_BHW & _near_outline(labels_BHW.where(known_BHW, -1), distance)
        near_predicted_BHW = known_BHW & _near_outline(predicted_BHW, distance)
        both_BHW = near_label_BHW & near_predicted_BHW & (predicted_BHW == labels_BHW)
        chosen = ((labels_BHW, both_BHW), (predicted_BHW, near_predicted_BHW), (labels_BHW, near_label_BHW))
        for row, (ids_BHW, mask_BHW) in zip(self.counts_3C, chosen, strict=True):
            row += torch.bincount(ids_BHW[:, own][mask_BHW[:, own]], minlength=self.num_classes)


def _near_outline(ids_BHW: Tensor, distance: int) -> Tensor:
    """Returns a mask of the pixels that have another id within the distance."""
    ids_B1HW = F.pad(ids_BHW[:, None].float(), (distance,) * 4, value=-2)
    highest, lowest = (_pooled(sign * ids_B1HW, 2 * distance + 1) for sign in (1, -1))
    return (highest != -lowest)[:, 0]


def _pooled(values_B1HW: Tensor, side: int) -> Tensor:
    # Pooling rows and columns separately takes 2 * side comparisons per pixel and not side * side.
    return F.max_pool2d(F.max_pool2d(values_B1HW, (side, 1), stride=1), (1, side), stride=1)
