"""Which samples each reader takes, in which order.

An epoch is one order of all samples: shards shuffled by (seed, epoch), one after another. A sample that comes more than
once does so in further passes over its shard, which are shuffled among the rest. Every worker of the training group
(rank), and every loader process of it, takes one contiguous range of that order, so that it opens only the shards in its
range and no sample is read twice.

Orders are made of positions alone; bytes are read last, for the positions that are wanted.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import webdataset

from kiloseg.data.shards import Shard


class Position(NamedTuple):
    """A sample of a split."""

    shard: int
    """Place of its shard in the list of shards."""
    sample: int
    """Its place in that shard."""
    copy: int
    """0 the first time it comes in an epoch, then 1, 2, ..."""


def in_order(shards: Sequence[Shard]) -> np.ndarray:
    """Positions of all samples, shard after shard: int32 of shape (N, 3)."""
    return _concatenated([_pass(shard, np.arange(entry.samples), 0) for shard, entry in enumerate(shards)])


def epoch_order(shards: Sequence[Shard], counts: np.ndarray | None, seed: int, epoch: int) -> np.ndarray:
    """Positions of an epoch before they are shuffled in a buffer: int32 of shape (sum of counts, 3).

    Args:
        shards: of the split.
        counts: times that each sample comes, in the order of `shards`; None: once.
        seed: of the run.
        epoch: from 0.
    """
    passes = []
    first = 0
    for shard, entry in enumerate(shards):
        times = np.ones(entry.samples, dtype=np.int64) if counts is None else counts[first : first + entry.samples]
        passes += [_pass(shard, np.flatnonzero(times > copy), copy) for copy in range(times.max(initial=0))]
        first += entry.samples
    random.Random(f"shards {seed} {epoch}").shuffle(passes)
    return _concatenated(passes)


def _pass(shard: int, indices: np.ndarray, copy: int) -> np.ndarray:
    positions = np.empty((len(indices), 3), dtype=np.int32)
    positions[:, 0], positions[:, 1], positions[:, 2] = shard, indices, copy
    return positions


def _concatenated(passes: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(passes) if passes else np.empty((0, 3), dtype=np.int32)


def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """Start and stop of the `part`-th of `parts` contiguous ranges that cover `total`; the first ones are longer by 1."""
    size, longer = divmod(total, parts)
    start = size * part + min(part, longer)
    return start, start + size + (part < longer)


def shuffle(positions: np.ndarray, size: int, seed: str) -> Iterator[Position]:
    """The same positions in an order that is random within a buffer of `size`."""
    return webdataset.shuffle(size, initial=size, rng=random.Random(seed))(as_positions(positions))


def as_positions(positions: np.ndarray) -> Iterable[Position]:
    """Rows of an order."""
    return (Position(*row) for row in positions.tolist())
