"""Decides what to answer for a pixel: its class, the group of its class where the class is not sure, or that it is unknown.

Shapes: C classes, L levels of groups, K best classes of a pixel, H W pixels, h w feature cells, N channels of the outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kiloseg.data.codec import IGNORE_ID
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.groups import levels_of
from kiloseg.inference.tiling import row_bands
from kiloseg.models.heads import Candidates, Head, Prediction

BEST = 16
"""Classes of a pixel whose probabilities are summed over groups; the probabilities of all others count as 0."""
BAND_PIXELS = 2**17
"""Target number of pixels whose best classes are in memory at the same time."""
BAND_VALUES = 2**25
"""Target number of logits in memory at the same time, for heads that compute those of all classes."""
UNKNOWN = "unknown"
"""Name of pixels that show none of the classes."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What may be answered besides a class."""

    level: int | None = None
    """Answer groups of this level, 1 for the largest groups; None: classes."""
    sure: float | None = None
    """Probability, above 0 and up to 1, that an answer needs: where the class has less, the smallest group that has it is
    answered, or the largest group if none has. None: always answer `level`."""
    unknown_below: float | None = None
    """Answer "unknown" where the familiarity of a pixel is lower; None: never."""

    def __post_init__(self) -> None:
        if self.sure is not None and not 0 < self.sure <= 1:
            raise ValueError(f"sure = {self.sure}: expected a probability above 0 and up to 1")
        if self.sure is not None and self.level is not None:
            raise ValueError("level and sure exclude each other: give a level, or the probability that decides on it")


Decide = Callable[[Tensor, tuple[int, int]], Prediction]
"""A function from outputs and a size to labels and confidences."""


def answering(head: Head, classes: ModelClasses, answer: Answer) -> tuple[Decide, ModelClasses]:
    """Returns the function that decides, and the classes, groups and "unknown" that its labels stand for.

    Labels 0 to C - 1 are the classes. Groups have ids after the highest class id, and "unknown" has the id of ignored pixels,
    65535. Confidences are probabilities, 0 to 1, among the BEST best classes.

    Raises:
        ValueError: the classes have no groups or no such level, or the head predicts only one class.
    """
    levels = levels_of(classes)
    wants_groups = answer.level is not None or answer.sure is not None
    if wants_groups and not levels:
        raise ValueError("the model's classes have no groups: make some with kiloseg classes SOURCE group")
    if answer.level is not None and not 1 <= answer.level <= len(levels):
        raise ValueError(f"level {answer.level}: expected 1 (the largest groups) to {len(levels)}")
    if not head.ranks:
        raise ValueError(
            f"{type(head).__name__} predicts only the best class of a pixel, so it can answer nothing else"
        )
    names: dict[tuple[str, ...], int] = {}
    tables = []
    for level in levels:
        # A class without a group answers for itself.
        node_of = np.arange(len(classes))
        for label, group in enumerate(level.group_of):
            key = level.keys[group]
            if key[0]:
                node_of[label] = len(classes) + names.setdefault(key, len(names))
        tables.append(torch.from_numpy(node_of))
    if answer.level is not None:
        tables = [tables[answer.level - 1]]
    unknown = len(classes) + len(names)

    def decide(outputs_1Nhw: Tensor, size: tuple[int, int]) -> Prediction:
        h = outputs_1Nhw.shape[2]
        stride = size[0] // h
        most = BAND_PIXELS if head.table is not None else min(BAND_PIXELS, BAND_VALUES // outputs_1Nhw.shape[1])
        labels, confidences = [], []
        for part, taken, _ in row_bands(outputs_1Nhw, slice(0, h), stride, most):
            number = min(BEST, len(classes))
            found = head.candidates(part, (part.shape[2] * stride, part.shape[3] * stride), number)
            label_BHW, confidence_BHW = _answer(found, tables, answer)
            if answer.unknown_below is not None:
                label_BHW = label_BHW.where(found.familiarity >= answer.unknown_below, unknown)
            labels.append(label_BHW[:, taken])
            confidences.append(confidence_BHW[:, taken])
        return Prediction(torch.cat(labels, dim=1), torch.cat(confidences, dim=1))

    return decide, _vocabulary(classes, [key[-1] for key in names])


def _answer(found: Candidates, tables: list[Tensor], answer: Answer) -> tuple[Tensor, Tensor]:
    """Returns the answers (B, H, W), classes or groups, and their probabilities."""
    labels_KBHW = found.labels
    probability_KBHW = found.logits.softmax(0)
    best_BHW, confidence_BHW = labels_KBHW[0], probability_KBHW[0]
    if answer.level is not None:
        return _best_group(tables[0].to(labels_KBHW.device)[labels_KBHW], probability_KBHW)
    if answer.sure is not None:
        for table in reversed(tables):
            doubtful_BHW = confidence_BHW < answer.sure
            group_BHW, sum_BHW = _best_group(table.to(labels_KBHW.device)[labels_KBHW], probability_KBHW)
            best_BHW = torch.where(doubtful_BHW, group_BHW, best_BHW)
            confidence_BHW = torch.where(doubtful_BHW, sum_BHW, confidence_BHW)
    return best_BHW, confidence_BHW


def _best_group(groups_KBHW: Tensor, probability_KBHW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the group with the largest sum of probabilities, and the sum."""
    sums = [(probability_KBHW * (groups_KBHW == group_BHW)).sum(0) for group_BHW in groups_KBHW]
    best = torch.stack(sums).max(dim=0)
    return groups_KBHW.gather(0, best.indices[None])[0], best.values.clamp(max=1)


def _vocabulary(classes: ModelClasses, groups: list[str]) -> ModelClasses:
    first = int(classes.ids.max(initial=-1)) + 1
    return dataclasses.replace(
        classes,
        ids=np.concatenate([classes.ids, np.arange(first, first + len(groups)), [IGNORE_ID]]),
        names=[*classes.names, *groups, UNKNOWN],
        train_samples=None,
        other_names=[],
        groups=None,
    )
