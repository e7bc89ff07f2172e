"""Counts everything that an evaluation needs, with whole numbers, so that the counts of several workers add up exactly.

Shapes: C classes, H W pixels, K best classes of a pixel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kiloseg.inference.groups import Level
from kiloseg.inference.matching import ABSENT, IGNORED
from kiloseg.metrics import BoundaryIoU, CalibrationError, ConfusedPairs, Histogram, IoU
from kiloseg.models.heads import Candidates


class Counts:
    """Holds the counters of an evaluation. Memory grows with the number of classes, and not with the number of pixels.

    Args:
        num_classes: C.
        levels: levels of groups of the classes.
        background: the label of the background, whose pixels do not count in `known`; None if there is none.
        device: where IoU is counted.
    """

    def __init__(
        self,
        num_classes: int,
        levels: Sequence[Level],
        *,
        background: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.background = background
        self.samples = 0
        self.in_first = torch.zeros(2, dtype=torch.int64)
        """Labeled pixels whose class is among the best K, and all labeled pixels."""
        self.iou = IoU(num_classes, device=device)
        self.boundary = BoundaryIoU(num_classes, device=device)
        self.of_groups = [IoU(len(level.names), device=device) for level in levels]
        self.calibration = CalibrationError()
        self.confused = ConfusedPairs(num_classes)
        self.known, self.absent = Histogram(-1, 1), Histogram(-1, 1)
        """Familiarity of the pixels of the model's classes but the background, and of classes that it does not have."""
        self._group_of = [torch.from_numpy(level.group_of).to(device) for level in levels]

    def update(self, found: Candidates, labels_BHW: Tensor) -> None:
        """Adds the predictions of some pixels; labels are 0 to C - 1, IGNORED or ABSENT."""
        self.absent.update(found.familiarity[labels_BHW == ABSENT])
        labels_BHW = labels_BHW.clamp(min=IGNORED)
        known_BHW = labels_BHW >= 0
        predicted_BHW = found.labels[0]
        objects_BHW = known_BHW if self.background is None else known_BHW & (labels_BHW != self.background)
        self.known.update(found.familiarity[objects_BHW])
        self.iou.update(predicted_BHW, labels_BHW)
        self.confused.update(predicted_BHW, labels_BHW)
        labels, predicted = labels_BHW[known_BHW], predicted_BHW[known_BHW]
        for counter, group_of in zip(self.of_groups, self._group_of, strict=True):
            counter.update(group_of[predicted][None, None], group_of[labels][None, None])
        self.in_first += torch.stack([(found.labels[:, known_BHW] == labels).any(0).sum(), known_BHW.sum()]).cpu()
        if len(found.logits) > 1:
            margin = (found.logits[0] - found.logits[1])[known_BHW]
            self.calibration.update(margin.sigmoid(), predicted == labels)

    def update_image(self, predicted_HW: Tensor, labels_HW: Tensor) -> None:
        """Adds what can only be counted on a whole image."""
        self.boundary.update(predicted_HW[None], labels_HW.clamp(min=IGNORED)[None])
        self.samples += 1

    def state(self) -> list[np.ndarray]:
        """Returns all counts as arrays, which `merge` adds to other counts."""
        pairs = self.confused.counts
        extra = [np.array([self.samples, self.confused.missing]), np.array([*pairs]), np.array([*pairs.values()])]
        return [counter.cpu().numpy() for counter in self._counters()] + extra

    def merge(self, state: Sequence[np.ndarray]) -> None:
        """Adds the counts of another worker."""
        *counts, (samples, missing), pairs, pixels = state
        for mine, theirs in zip(self._counters(), counts, strict=True):
            mine += torch.from_numpy(theirs).to(mine.device)
        self.samples += int(samples)
        self.confused.merge(dict(zip(pairs.tolist(), pixels.tolist(), strict=True)), int(missing))

    def _counters(self) -> Iterator[Tensor]:
        yield self.in_first
        yield from (each.counts_3C for each in (self.iou, self.boundary, *self.of_groups))
        yield self.calibration.sums_3b
        yield from (each.counts_b for each in (self.known, self.absent))
