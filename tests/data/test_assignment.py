"""The simulation of shard assignment over many workers: it runs training's own stream, and it would notice a fault."""

import sys
from pathlib import Path

import numpy as np
import pytest

from kiloseg.data.description import Shard
from kiloseg.data.reading import loader, order

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from assignment import Arguments, simulate, times_read


@pytest.mark.parametrize(("workers", "loader_workers"), [(16, 2), (7, 3), (1, 1)])
def test_every_sample_is_read_once_and_workers_take_as_many_steps(workers, loader_workers):
    arguments = Arguments(workers=workers, loader_workers=loader_workers, shards=30, samples=60, batch_size=4)
    epoch = simulate(arguments)
    assert times_read(epoch) == {1: epoch.num_samples - epoch.left_out} | (
        {0: epoch.left_out} if epoch.left_out else {}
    )
    assert {share.steps for share in epoch.shares} == {epoch.num_samples // (workers * 4)}
    assert {len(share.samples) for share in epoch.shares} == {epoch.num_samples // (workers * 4) * 4}
    # A range of the epoch's order touches a shard more than it holds, at each end.
    most = -(-max(len(share.samples) for share in epoch.shares) // 54) + 2 * loader_workers
    assert max(share.shards for share in epoch.shares) <= most


def test_a_split_that_overlaps_is_noticed(monkeypatch):
    def twice(positions, size):
        return (batch for batch in order.batched(positions, size) for _ in range(2))

    monkeypatch.setattr(loader, "batched", twice)
    epoch = simulate(Arguments(workers=4, loader_workers=2, shards=8, samples=40, batch_size=4))
    assert max(times_read(epoch)) > 1


def test_slices_of_an_order_are_those_of_all_its_positions():
    """Also where shards are empty, samples come several times or not at all, and a slice ends in the middle of a shard."""
    rng = np.random.default_rng(0)
    shards = [
        Shard(name=str(number), samples=samples, bytes=0, sha256="") for number, samples in enumerate([3, 0, 5, 1, 4])
    ]
    for counts in (None, rng.integers(0, 4, 13), np.zeros(13, dtype=np.int64)):
        positions = order.epoch_order(shards, counts, seed=1, epoch=2)
        whole = positions[:]
        assert len(whole) == len(positions) == (13 if counts is None else counts.sum())
        came = np.zeros(13, dtype=np.int64)
        for shard, sample, _ in whole:
            came[sum(each.samples for each in shards[:shard]) + sample] += 1
        assert came.tolist() == (np.ones(13, dtype=np.int64) if counts is None else counts).tolist()
        for start in range(len(positions) + 1):
            for stop in range(len(positions) + 2):
                assert positions[start:stop].tolist() == whole[start:stop].tolist()
    assert len(order.epoch_order([], None, seed=0, epoch=0)) == 0
