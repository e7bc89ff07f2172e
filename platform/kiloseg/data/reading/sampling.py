"""Favouring rare classes: how often a sample comes in an epoch, and which of its classes a crop is placed over."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pyarrow

from kiloseg.data.classes import Classes
from kiloseg.data.description import Shard
from kiloseg.data.index import NAME
from kiloseg.storage.errors import DataError

_WHOLE = 1 << 32
"""Fractions of repeat factors are counted in parts of this, so that their sums are exact in any order."""


class SampleClasses:
    """The labels that occur in each sample of a split, in the order of its shards.

    Args:
        index: the rows of the split.
        shards: of the split.
        classes: of the run; others are passed over.

    Raises:
        DataError: the index lists other samples than dataset.json.
    """

    def __init__(self, index: pyarrow.Table, shards: Sequence[Shard], classes: Classes) -> None:
        number = {shard.name: n for n, shard in enumerate(shards)}
        shard_of_row = np.array([number.get(name, -1) for name in index["shard"].to_pylist()], dtype=np.int64)
        found = np.bincount(shard_of_row[shard_of_row >= 0], minlength=len(shards))
        for shard, count in zip(shards, found, strict=True):
            if count != shard.samples:
                raise DataError(
                    f"{NAME} lists {count} samples of {shard.name}, dataset.json {shard.samples}; build the data set again"
                )
        in_order = np.argsort(shard_of_row, kind="stable")[np.count_nonzero(shard_of_row < 0) :]
        listed = index["class_ids"].take(pyarrow.array(in_order)).combine_chunks()
        ids, lengths = listed.flatten().to_numpy(), listed.value_lengths().to_numpy(zero_copy_only=False)
        used = np.isin(ids, classes.ids)
        owner = np.repeat(np.arange(len(lengths)), lengths)[used]
        self.labels = np.searchsorted(classes.ids, ids[used])
        """Of all samples, one after another; those of sample i start at starts[i]."""
        self.starts = np.searchsorted(owner, np.arange(len(lengths) + 1))
        self.samples_per_class = np.bincount(self.labels, minlength=len(classes))

    def __getitem__(self, sample: int) -> np.ndarray:
        return self.labels[self.starts[sample] : self.starts[sample + 1]]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def repeat_factors(self, threshold: float) -> np.ndarray:
        """r(I) = max over the classes c of image I of max(1, sqrt(threshold / f(c))): float64 of shape (N,).

        f(c) is the share of samples that hold class c (LVIS, https://arxiv.org/abs/1908.03195, appendix B). A sample that
        holds none of the classes has factor 1.
        """
        factors = np.ones(len(self))
        # The factor of a class that no sample holds is infinite, or 0 / 0, and never looked up.
        with np.errstate(divide="ignore", invalid="ignore"):
            of_class = np.sqrt(threshold * len(self) / self.samples_per_class)
        np.maximum.at(factors, np.repeat(np.arange(len(self)), np.diff(self.starts)), of_class[self.labels])
        return factors

    def rare_class(self, sample: int, rng: random.Random) -> int | None:
        """A label of the sample, drawn with weight 1 / sqrt(samples that hold it); None where it has none."""
        labels = self[sample]
        if not len(labels):
            return None
        return int(rng.choices(labels, weights=1 / np.sqrt(self.samples_per_class[labels]))[0])


class Repeats:
    """How often each sample comes in an epoch: floor or ceiling of its repeat factor, which is its mean over epochs.

    Which fractions are rounded up is drawn by systematic sampling, in an order of samples that is drawn too: one number u
    for the epoch, and the samples at which the running sum of fractions passes u, u + 1, u + 2, ... Then the length of an
    epoch, the sum of all factors, varies by less than 1, and so the number of steps does not vary at all.
    """

    def __init__(self, factors: np.ndarray) -> None:
        self._floors = np.floor(factors).astype(np.int64)
        self._fractions = np.rint((factors - self._floors) * _WHOLE).astype(np.int64)
        self.least = int(self._floors.sum() + self._fractions.sum() // _WHOLE)
        """Samples in the shortest epoch; there is at most one more."""

    def counts(self, seed: int, epoch: int) -> np.ndarray:
        """Times that each sample comes in this epoch: int64 of shape (N,)."""
        rng = np.random.default_rng(random.Random(f"repeats {seed} {epoch}").getrandbits(64))
        order = rng.permutation(len(self._floors))
        passed = np.cumsum(np.concatenate([[rng.integers(_WHOLE)], self._fractions[order]])) // _WHOLE
        counts = self._floors.copy()
        counts[order] += np.diff(passed)
        return counts
