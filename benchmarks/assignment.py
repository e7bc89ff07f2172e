"""Who reads what when a thousand workers train: balance, every sample once, and what finding that out costs each of them.

    python benchmarks/assignment.py
    python benchmarks/assignment.py --workers 8 --shards 40 --samples 500
    python benchmarks/assignment.py --shards 100000 --sampled 4          a billion samples, four of the workers

This runs the actual stream of training without its reading: each worker's loader processes are run one after another for a whole
epoch, and the samples that they would have read are counted. It needs no data. It reports the samples and shards of a worker, the
largest and smallest of any, how often samples occur over all workers together, and the time and memory that a loader process takes
before its first batch.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import tyro

from kiloseg.config import Data
from kiloseg.data.description import DatasetInfo, Shard
from kiloseg.data.reading import loader
from kiloseg.data.reading.order import Position


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Describes an epoch over many workers."""

    workers: int = 1000
    """The number of training processes."""
    loader_workers: int = 2
    """The number of loader processes per worker."""
    shards: int = 2000
    """The number of shards in the training split."""
    samples: int = 10_000
    """The number of samples per shard, give or take a tenth."""
    batch_size: int = 10
    """The number of images per step and worker."""
    epoch: int = 3
    """The number of the epoch."""
    seed: int = 0
    """The seed of the order."""
    sampled: int | None = None
    """Runs only this many workers, including the first and the last. None runs all and counts samples one by one."""


class Share(NamedTuple):
    """Holds what one worker reads in an epoch."""

    samples: np.ndarray
    """The numbers of its samples, counted over all shards."""
    shards: int
    """The number of shards it opens."""
    steps: int
    first_batch_s: float
    """The longest time of the worker's loader processes before their first batch could be read, in seconds."""


class Epoch(NamedTuple):
    """Holds what the workers read together."""

    shares: list[Share]
    num_samples: int
    left_out: int
    """The number of samples that do not fill a last step of all workers."""


class _Stream(loader._TrainStream):
    """Records positions instead of reading them."""

    def _fill(self, *arguments: Any) -> None:
        *_, positions, _ = arguments
        self.noted.append(positions)

    noted: list[list[Position]]


def make_info(arguments: Arguments) -> DatasetInfo:
    """Returns a data set that exists in name only."""
    rng = np.random.default_rng(arguments.seed)
    counts = rng.integers(arguments.samples * 9 // 10, arguments.samples * 11 // 10 + 1, arguments.shards)
    shards = [
        Shard(name=f"train-{number:06d}.tar", samples=int(count), bytes=0, sha256="")
        for number, count in enumerate(counts)
    ]
    return DatasetInfo(
        name="none",
        classes=["a", "b"],
        background=None,
        license="none",
        command="none",
        recipe={},
        splits={"train": shards},
    )


def share_of(info: DatasetInfo, arguments: Arguments, rank: int) -> Share:
    """Runs the stream of a worker's loader processes for an epoch."""
    data = Data(path="nowhere", crop=32, loader_workers=0)
    first_of_shard = np.cumsum([0, *(shard.samples for shard in info.shards("train"))])
    numbers, shards, slowest = [], set(), 0.0
    steps = 0
    for worker in range(arguments.loader_workers):
        stream = _Stream(
            data, info, batch_size=arguments.batch_size, seed=arguments.seed, rank=rank, world=arguments.workers
        )
        stream.noted = []
        stream.epoch_and_skip[0] = arguments.epoch
        turn = (worker, arguments.loader_workers)
        with mock.patch.object(loader, "loader_process", lambda turn=turn: turn):
            begin = time.perf_counter()
            batches = iter(stream)
            next(batches)
            slowest = max(slowest, time.perf_counter() - begin)
            steps += 1 + sum(1 for _ in batches)
        positions = np.array([position for batch in stream.noted for position in batch])
        numbers.append(first_of_shard[positions[:, 0]] + positions[:, 1])
        shards |= set(positions[:, 0].tolist())
    return Share(np.concatenate(numbers), len(shards), steps, slowest)


def simulate(arguments: Arguments) -> Epoch:
    """Returns the shares of all workers, or of those that are sampled."""
    info = make_info(arguments)
    ranks = np.arange(arguments.workers)
    if arguments.sampled is not None:
        ranks = np.unique(np.linspace(0, arguments.workers - 1, arguments.sampled).astype(int))
    total = info.num_samples("train")
    return Epoch(
        [share_of(info, arguments, int(rank)) for rank in ranks],
        total,
        total % (arguments.workers * arguments.batch_size),
    )


def times_read(epoch: Epoch) -> dict[int, int]:
    """Counts the samples that the workers read once, twice, ... between them, and those that nobody reads (0)."""
    counts = np.zeros(epoch.num_samples, dtype=np.uint8)
    for share in epoch.shares:
        np.add.at(counts, share.samples, 1)
    times, samples = np.unique(counts, return_counts=True)
    return {int(time): int(count) for time, count in zip(times, samples, strict=True)}


def main(arguments: Arguments) -> None:
    """Runs the epoch and prints the table."""
    begin = time.perf_counter()
    epoch = simulate(arguments)
    steps = {share.steps for share in epoch.shares}
    samples = [len(share.samples) for share in epoch.shares]
    opened = [share.shards for share in epoch.shares]
    print(
        f"{epoch.num_samples:,} samples in {arguments.shards:,} shards, {arguments.workers:,} workers of "
        f"{arguments.loader_workers} loader processes, {len(epoch.shares):,} of them run in {time.perf_counter() - begin:.0f} s"
    )
    print(f"steps of a worker                     {', '.join(map(str, sorted(steps)))}")
    print(f"samples of a worker, fewest and most  {min(samples):,} to {max(samples):,}")
    print(f"shards that a worker opens            {min(opened)} to {max(opened)}, {np.mean(opened):.2f} on average")
    print(f"left out of the epoch                 {epoch.left_out:,}")
    print(f"before the first batch of a process   {max(share.first_batch_s for share in epoch.shares):.2f} s at most")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process           {peak:.2f} GiB")
    if arguments.sampled is None:
        once = times_read(epoch)
        print(
            "samples by times read                 " + ", ".join(f"{times}: {count:,}" for times, count in once.items())
        )
        if once.get(1, 0) != epoch.num_samples - epoch.left_out or max(once) > 1 or len(steps) > 1:
            raise SystemExit("samples are not read once each, or workers take different numbers of steps")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
