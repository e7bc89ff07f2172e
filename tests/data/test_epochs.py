"""An epoch gives every sample once in an order of its own, and resuming gives the batches that were left."""

import itertools

import pytest
import torch
from numbered import TOTAL, described, identities, numbered_samples, plain, same

from kiloseg.config import Data
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import TrainBatches
from kiloseg.data.writing.shard import write_shard

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # fewer cores than workers
]


def train_batches(directory, *, batch_size=6, seed=0, rank=0, world=1, **changes):
    return TrainBatches(
        plain(directory, **changes), read_info(directory), batch_size=batch_size, seed=seed, rank=rank, world=world
    )


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(
    ("batch_size", "left_out", "loader_workers"),
    # 7, 3 and 2 steps: a multiple of the loader workers, or not, or fewer.
    [
        (6, 0, 0),
        (6, 0, 1),
        (6, 0, 2),
        (6, 0, 3),
        (12, 6, 0),
        (12, 6, 2),
        (12, 6, 3),
        (18, 6, 0),
        (18, 6, 2),
        (18, 6, 3),
    ],
)
def test_every_sample_once_an_epoch(numbered, batch_size, left_out, world, loader_workers):
    ranks = [
        train_batches(numbered, batch_size=batch_size, rank=rank, world=world, loader_workers=loader_workers)
        for rank in range(world)
    ]
    for epoch in (0, 1):
        seen = []
        for batches in ranks:
            assert (batches.steps_per_epoch, batches.left_out) == (TOTAL // batch_size, left_out)
            got = [identities(batch) for batch in batches.epoch(epoch)]
            assert [len(batch) for batch in got] == [batch_size // world] * batches.steps_per_epoch
            seen += [identity for batch in got for identity in batch]
        assert len(seen) == len(set(seen)) == TOTAL - left_out
        assert set(seen) <= set(range(TOTAL))


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_order_is_a_function_of_seed_and_epoch(numbered, loader_workers):
    def order(seed, epoch):
        batches = train_batches(numbered, seed=seed, loader_workers=loader_workers)
        return [identity for batch in batches.epoch(epoch) for identity in identities(batch)]

    first = order(0, 0)
    assert order(0, 0) == first
    others = [order(0, 1), order(1, 0), order(1, 1), sorted(first)]
    assert first not in others
    assert others[0] not in others[1:]
    # Shuffled within shards also, not only shard after shard.
    assert len({b - a for a, b in itertools.pairwise(first)}) > 5


def test_persistent_loader_equals_a_fresh_one(numbered):
    living = train_batches(numbered, loader_workers=2)
    epochs = [[identities(batch) for batch in living.epoch(epoch)] for epoch in (0, 1, 2, 0)]
    fresh = [[identities(batch) for batch in train_batches(numbered, loader_workers=2).epoch(e)] for e in (0, 1, 2)]
    assert epochs == [*fresh, fresh[0]]


def test_left_out_samples_change_from_epoch_to_epoch(numbered):
    batches = train_batches(numbered, batch_size=18, loader_workers=0)
    left_out = [
        set(range(TOTAL)) - {identity for batch in batches.epoch(epoch) for identity in identities(batch)}
        for epoch in range(8)
    ]
    assert {len(samples) for samples in left_out} == {6}
    assert not set.intersection(*left_out), "no sample is lost for ever"
    assert len({frozenset(samples) for samples in left_out}) > 1


def test_one_shard_leaves_out_other_samples_in_other_epochs(tmp_path):
    shard, _ = write_shard(tmp_path / "train.tar", numbered_samples(range(11)), num_classes=300)
    described(tmp_path, [shard], 300)
    batches = train_batches(tmp_path, batch_size=4, loader_workers=0)
    assert batches.left_out == 3
    seen = {identity for epoch in range(40) for batch in batches.epoch(epoch) for identity in identities(batch)}
    assert seen == set(range(11))


def random_batches(directory, loader_workers):
    data = Data(path=str(directory), crop=32, jitter=0.4, flip=0.5, loader_workers=loader_workers, shuffle_buffer=8)
    return TrainBatches(data, read_info(directory), batch_size=6, seed=3)


@pytest.mark.parametrize("loader_workers", [0, 2, 3])
def test_resuming_anywhere_in_an_epoch_gives_the_batches_that_were_left(squares, loader_workers):
    whole = list(random_batches(squares, loader_workers).epoch(1))
    assert len(whole) == 7, "not a multiple of 2 or 3 loader workers"
    assert not same(whole[:1], whole[1:2])
    for skip in range(8):
        # A new object, as in a new process.
        assert same(random_batches(squares, loader_workers).epoch(1, skip=skip), whole[skip:]), skip
    living = random_batches(squares, loader_workers)
    list(living.epoch(0))
    assert same(living.epoch(1, skip=3), whole[3:])


def test_samples_are_augmented_anew_in_each_epoch_and_alike_under_each_seed(numbered):
    def images(seed, epoch):
        data = Data(path=str(numbered), crop=32, jitter=1.0, loader_workers=0)
        batches = list(TrainBatches(data, read_info(numbered), batch_size=6, seed=seed).epoch(epoch))
        labels = torch.cat([labels.amax((1, 2)) for _, labels in batches])
        return torch.cat([images for images, _ in batches])[labels.argsort()]

    first = images(0, 0)
    assert torch.equal(images(0, 0), first)
    for other in (images(0, 1), images(1, 0)):
        assert (other != first).flatten(1).any(1).float().mean() > 0.9


@pytest.mark.parametrize("skip", [0, 3])
@pytest.mark.parametrize("loader_workers", [1, 2, 3])
def test_order_does_not_depend_on_loader_processes(squares, loader_workers, skip):
    """So that a run may be resumed with another number of them."""
    want = list(random_batches(squares, 0).epoch(1, skip=skip))
    assert same(random_batches(squares, loader_workers).epoch(1, skip=skip), want)


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_from_step_crosses_epochs(numbered, loader_workers):
    steps = TOTAL // 6
    epochs = [
        identities(batch)
        for epoch in range(3)
        for batch in train_batches(numbered, loader_workers=loader_workers).epoch(epoch)
    ]
    for start in (3, steps, 2 * steps - 1):
        endless = train_batches(numbered, loader_workers=loader_workers).from_step(start)
        count = 2 * steps + 3 - start
        assert [identities(next(endless)) for _ in range(count)] == epochs[start : start + count]
