"""Computes intersection over union from three counters per class."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor


class IoU:
    """Computes IoU from counts per class, which are summed over batches and workers and divided once.

    Three int64 counters of length C replace a C x C confusion matrix. A class that occurs neither in the
    labels nor among the predictions of labeled pixels has no IoU and does not count in the mean.
    """

    def __init__(self, num_classes: int, *, ignore_index: int = -1, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        # Rows: hits (predicted and labeled), predicted, labeled.
        self.counts_3C = torch.zeros((3, num_classes), dtype=torch.int64, device=device)

    def update(self, predicted_BHW: Tensor, labels_BHW: Tensor) -> None:
        """Adds a batch of two int64 tensors of equal shape: predictions 0 to C - 1, labels the same or `ignore_index`.

        Raises:
            ValueError: the shapes differ, or ids are outside the classes.
        """
        if predicted_BHW.shape != labels_BHW.shape:
            raise ValueError(
                f"predictions {tuple(predicted_BHW.shape)} and labels {tuple(labels_BHW.shape)}: expected equal shapes"
            )
        valid = labels_BHW != self.ignore_index
        predicted, labels = predicted_BHW[valid], labels_BHW[valid]
        for name, ids in (("predictions", predicted), ("labels", labels)):
            if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_classes:
                raise ValueError(
                    f"{name} hold ids {int(ids.min())} to {int(ids.max())}: expected 0 to {self.num_classes - 1}"
                )
        for row, ids in zip(self.counts_3C, (labels[predicted == labels], predicted, labels), strict=True):
            row += torch.bincount(ids, minlength=self.num_classes)

    def all_reduce(self) -> None:
        """Sums the counts over the workers of a process group; does nothing without one."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counts_3C)

    @property
    def num_labeled(self) -> int:
        """Returns the number of labeled pixels so far."""
        return int(self.counts_3C[2].sum())

    def compute(self) -> dict[str, Any]:
        """Computes the metrics as fractions from 0 to 1.

        Returns:
            "miou" and "pixel_accuracy" (floats, NaN if no pixel was labeled) and "iou_per_class", a float64 tensor of
            length C with NaN for classes that occur nowhere.
        """
        hits, predicted, labeled = self.counts_3C.cpu().double()
        iou_C = hits / (predicted + labeled - hits)
        return {
            "miou": iou_C.nanmean().item(),
            "pixel_accuracy": (hits.sum() / labeled.sum()).item(),
            "iou_per_class": iou_C,
        }
