"""Decides which samples each reader takes and in which order.

An epoch is one order of all samples: shards shuffled by (seed, epoch), one after another. A sample that comes more than
once does so in further passes over its shard, which are shuffled among the rest. Every worker of the training group
(rank) takes one contiguous range of that order, so that it opens only the shards in its range and no sample is read twice. Its
loader processes take the batches of that range in turn.

Orders consist of positions only. Bytes are read last, for the requested positions.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import webdataset

from kiloseg.data.description import Shard

ROWS = 65536
"""Number of rows of an order that are turned into Python objects at a time."""


class Position(NamedTuple):
    """Identifies a sample of a split."""

    shard: int
    """Index of its shard in the list of shards."""
    sample: int
    """Index of the sample in that shard."""
    copy: int
    """0 the first time that the sample occurs in an epoch, then 1, 2, ..."""


class Order:
    """Holds positions of samples, pass after pass over shards. A slice is an int32 array of shape (samples, 3).

    Only a few bytes per pass are stored until a slice is requested, so that an epoch of a billion samples costs a worker
    only the memory of its own share.
    """

    def __init__(self, shards: Sequence[Shard], counts: np.ndarray | None) -> None:
        self._counts = counts
        self._first = np.cumsum([0, *(shard.samples for shard in shards)])
        if counts is None:
            numbers = np.arange(len(shards), dtype=np.int32)
            self._passes = np.stack([numbers, np.zeros_like(numbers)], axis=1)
            sizes = np.diff(self._first)
        else:
            times = [counts[start:stop] for start, stop in itertools.pairwise(self._first)]
            passes = [
                (shard, copy, np.count_nonzero(each > copy))
                for shard, each in enumerate(times)
                for copy in range(each.max(initial=0))
            ]
            table = np.array(passes, dtype=np.int64).reshape(-1, 3)
            self._passes, sizes = table[:, :2].astype(np.int32), table[:, 2]
        self._stops = np.cumsum(sizes)

    def shuffled(self, rng: random.Random) -> Order:
        """Returns the same passes in another order."""
        permutation = list(range(len(self._passes)))
        rng.shuffle(permutation)
        sizes = np.diff(self._stops, prepend=0)[permutation]
        other = copy.copy(self)
        other._passes, other._stops = self._passes[permutation], np.cumsum(sizes)
        return other

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        if start >= stop:
            return np.empty((0, 3), dtype=np.int32)
        first, last = np.searchsorted(self._stops, [start, stop - 1], side="right")
        before = int(self._stops[first - 1]) if first else 0
        passes = [self._positions(*self._passes[number].tolist()) for number in range(first, last + 1)]
        return np.concatenate(passes)[start - before : stop - before]

    def _positions(self, shard: int, copy: int) -> np.ndarray:
        start, stop = self._first[shard : shard + 2]
        indices = np.arange(stop - start) if self._counts is None else np.flatnonzero(self._counts[start:stop] > copy)
        positions = np.empty((len(indices), 3), dtype=np.int32)
        positions[:, 0], positions[:, 1], positions[:, 2] = shard, indices, copy
        return positions


def in_order(shards: Sequence[Shard]) -> Order:
    """Returns the order of all samples, shard after shard."""
    return Order(shards, None)


def epoch_order(shards: Sequence[Shard], counts: np.ndarray | None, seed: int, epoch: int) -> Order:
    """Returns the order of an epoch before it is shuffled in a buffer.

    Args:
        shards: the shards of the split.
        counts: how often each sample occurs, in the order of `shards`; None means once.
        seed: the seed of the run.
        epoch: the number of the epoch, from 0.
    """
    return Order(shards, counts).shuffled(random.Random(f"shards {seed} {epoch}"))


def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """Returns start and stop of range `part` of `parts` contiguous ranges over `total`; the first ones may be longer by 1."""
    size, longer = divmod(total, parts)
    start = size * part + min(part, longer)
    return start, start + size + (part < longer)


def shuffle(positions: np.ndarray, size: int, seed: str) -> Iterator[Position]:
    """Yields the same positions in an order that is random within a buffer of `size` positions."""
    return webdataset.shuffle(size, initial=size, rng=random.Random(seed))(as_positions(positions))


def as_positions(positions: np.ndarray) -> Iterator[Position]:
    """Yields the rows of an order as positions. Only some of them are Python objects at a time, which take much more memory."""
    for start in range(0, len(positions), ROWS):
        yield from itertools.starmap(Position, positions[start : start + ROWS].tolist())


def batched(positions: Iterable[Position], size: int) -> Iterator[list[Position]]:
    """Yields lists of `size` positions in order; the last one may be shorter."""
    remaining = iter(positions)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
