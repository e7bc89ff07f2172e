"""Favors rare classes: decides how often a sample occurs in an epoch and which of its classes a crop is placed over."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pyarrow

from kiloseg.data.classes import Classes
from kiloseg.data.description import AGAIN, Shard
from kiloseg.data.index import NAME
from kiloseg.storage.errors import DataError

_WHOLE = 1 << 32
"""Fractions of repeat factors are integers in units of 1 / 2^32, so that their sums are exact in any order."""


class SampleClasses:
    """Holds the labels that occur in each sample of a split, in the order of its shards.

    Args:
        index: the index rows of the split.
        shards: the shards of the split.
        classes: the classes of the run; other classes are skipped.

    Raises:
        DataError: the index lists other samples than dataset.json.
    """

    def __init__(self, index: pyarrow.Table, shards: Sequence[Shard], classes: Classes) -> None:
        number = {shard.name: n for n, shard in enumerate(shards)}
        shard_of_row = np.array([number.get(name, -1) for name in index["shard"].to_pylist()], dtype=np.int64)
        found = np.bincount(shard_of_row[shard_of_row >= 0], minlength=len(shards))
        for shard, count in zip(shards, found, strict=True):
            if count != shard.samples:
                raise DataError(f"{NAME} lists {count} samples of {shard.name}, dataset.json {shard.samples}; {AGAIN}")
        in_order = np.argsort(shard_of_row, kind="stable")[np.count_nonzero(shard_of_row < 0) :]
        listed = index["class_ids"].take(pyarrow.array(in_order)).combine_chunks()
        ids, lengths = listed.flatten().to_numpy(), listed.value_lengths().to_numpy(zero_copy_only=False)
        used = np.isin(ids, classes.ids)
        owner = np.repeat(np.arange(len(lengths)), lengths)[used]
        self.labels = np.searchsorted(classes.ids, ids[used])
        """The labels of all samples, one sample after another; those of sample i start at starts[i]."""
        self.starts = np.searchsorted(owner, np.arange(len(lengths) + 1))
        self.samples_per_class = np.bincount(self.labels, minlength=len(classes))

    def __getitem__(self, sample: int) -> np.ndarray:
        return self.labels[self.starts[sample] : self.starts[sample + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def repeat_factors(self, threshold: float) -> np.ndarray:
        """Returns r(I) = max over classes c of image I of max(1, sqrt(threshold / f(c))): float64 of shape (N,).

        f(c) is the share of samples that contain class c (LVIS, https://arxiv.org/abs/1908.03195, appendix B). A sample
        that contains none of the classes has factor 1.
        """
        factors = np.ones(len(self))
        # The factor of a class that no sample contains is infinite, or 0 / 0, and is never looked up.
        with np.errstate(divide="ignore", invalid="ignore"):
            of_class = np.sqrt(threshold * len(self) / self.samples_per_class)
        np.maximum.at(factors, np.repeat(np.arange(len(self)), np.diff(self.starts)), of_class[self.labels])
        return factors

    def rare_class(self, sample: int, rng: random.Random, exponent: float = 0.5) -> int | None:
        """Draws a label of the sample with weight 1 / n^exponent, where n samples contain it; None if it has no label."""
        labels = self[sample]
        if not len(labels):
            return None
        return int(rng.choices(labels, weights=self.samples_per_class[labels] ** -exponent)[0])


class Repeats:
    """Decides how often each sample occurs in an epoch: the floor or ceiling of its repeat factor, the mean over epochs.

    Systematic sampling in a random order of samples decides which fractions are rounded up. It draws one number u for the
    epoch and takes the samples at which the running sum of fractions passes u, u + 1, u + 2, ... The length of an epoch then
    differs from the sum of all factors by less than 1, so the number of steps does not vary at all.
    """

    def __init__(self, factors: np.ndarray) -> None:
        self._floors = np.floor(factors).astype(np.int64)
        self._fractions = np.rint((factors - self._floors) * _WHOLE).astype(np.int64)
        self.least = int(self._floors.sum() + self._fractions.sum() // _WHOLE)
        """Number of samples in the shortest epoch. Other epochs have at most one more."""

    def counts(self, seed: int, epoch: int) -> np.ndarray:
        """Returns how often each sample occurs in this epoch: int64 of shape (N,)."""
        rng = np.random.default_rng(random.Random(f"repeats {seed} {epoch}").getrandbits(64))
        order = rng.permutation(len(self._floors))
        passed = np.cumsum(np.concatenate([[rng.integers(_WHOLE)], self._fractions[order]])) // _WHOLE
        counts = self._floors.copy()
        counts[order] += np.diff(passed)
        return counts
