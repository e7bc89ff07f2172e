"""Counts which classes are confused with which, without a C x C matrix."""

from __future__ import annotations

import heapq
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor


class Confusion(NamedTuple):
    """Holds the number of pixels of one class that were predicted as another."""

    label: int
    predicted: int
    pixels: int


class ConfusedPairs:
    """Counts (label, prediction) pairs that are not equal, in bounded memory.

    If more than `capacity` pairs have occurred, the rarer half is discarded, by lossy counting
    (https://www.vldb.org/conf/2002/S10P03.pdf): a count may then be too low by at most `missing`.

    Args:
        num_classes: C.
        capacity: the number of pairs that are kept.
    """

    def __init__(self, num_classes: int, *, capacity: int = 100_000) -> None:
        self.num_classes = num_classes
        self.capacity = capacity
        self.missing = 0
        self._counts: Counter[int] = Counter()

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Adds predictions 0 to C - 1 and labels of the same shape; pixels with label -1 are not counted."""
        wrong = (labels >= 0) & (predicted != labels)
        pairs, counts = torch.unique(labels[wrong] * self.num_classes + predicted[wrong], return_counts=True)
        self._count(dict(zip(pairs.tolist(), counts.tolist(), strict=True)))

    def merge(self, counts: dict[int, int], missing: int) -> None:
        """Adds what `counts` and `missing` of another counter of the same classes say."""
        self.missing += missing
        self._count(counts)

    @property
    def counts(self) -> dict[int, int]:
        """Number of pixels of each pair, by label x C + prediction."""
        return dict(self._counts)

    def _count(self, counts: dict[int, int]) -> None:
        self._counts.update(counts)
        if len(self._counts) > self.capacity:
            kept = self._counts.most_common(self.capacity // 2 + 1)
            self.missing += kept.pop()[1]
            self._counts = Counter(dict(kept))

    def most(self, number: int) -> list[Confusion]:
        """Returns the `number` most frequent pairs; among equally frequent ones, those of lower labels."""
        most = heapq.nsmallest(number, self._counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return [Confusion(pair // self.num_classes, pair % self.num_classes, pixels) for pair, pixels in most]
