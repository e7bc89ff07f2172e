"""Which samples each reader takes, in which order.

An epoch is one order of all samples: shards shuffled by (seed, epoch), one after another. Every worker of the training
group (rank), and every loader process of it, reads one contiguous range of that order, so that it opens only the shards
in its range and no sample is read twice.
"""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from kiloseg.data.shards import DataError, Shard


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Samples `start` to `stop` - 1 of a shard."""

    shard: Shard
    start: int
    stop: int


def shuffled(shards: Sequence[Shard], seed: int, epoch: int) -> list[Shard]:
    """The shards in the order of an epoch."""
    order = list(shards)
    random.Random(f"shards {seed} {epoch}").shuffle(order)
    return order


def segments(shards: Sequence[Shard], start: int, stop: int) -> list[Segment]:
    """The parts of shards that samples `start` to `stop` - 1 of the given order lie in."""
    parts = []
    position = 0
    for shard in shards:
        first, last = max(start - position, 0), min(stop - position, shard.samples)
        if first < last:
            parts.append(Segment(shard=shard, start=first, stop=last))
        position += shard.samples
    return parts


def share(total: int, part: int, parts: int) -> tuple[int, int]:
    """Start and stop of the `part`-th of `parts` contiguous ranges that cover `total`; the first ones are longer by 1."""
    size, longer = divmod(total, parts)
    start = size * part + min(part, longer)
    return start, start + size + (part < longer)


def read(directory: Path, parts: Sequence[Segment]) -> Iterator[dict[str, Any]]:
    """Raw samples of the segments: webdataset dicts of bytes with __key__ and __url__.

    Raises:
        DataError: a shard that is missing, damaged, or holds fewer samples than dataset.json says.
    """
    for segment in parts:
        path = directory / segment.shard.name
        position = 0
        try:
            with path.open("rb") as stream:
                # Opened here: webdataset's own opener would run a name such as "pipe:..." as a shell command.
                for sample in group_by_keys(tar_file_expander([{"url": segment.shard.name, "stream": stream}])):
                    if position >= segment.start:
                        yield sample
                    position += 1
                    if position == segment.stop:
                        break
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing; restore it or build the data set again") from error
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            raise DataError(
                f"{path} cannot be read after {position} samples ({error}); restore it or build it again"
            ) from error
        if position < segment.stop:
            raise DataError(
                f"{path} ends after {position} samples, dataset.json lists {segment.shard.samples}; restore it or build it again"
            )


def shuffle(samples: Iterator[dict[str, Any]], size: int, seed: str) -> Iterator[dict[str, Any]]:
    """The same samples in an order that is random within a buffer of `size`."""
    return webdataset.shuffle(size, initial=size, rng=random.Random(seed))(samples)
