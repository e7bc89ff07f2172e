"""Validation gives each sample once and in order, whatever the processes, and pads with ignored pixels."""

import numpy as np
import pytest
import torch
from numbered import described, encoded, identities, plain, same

from kiloseg.config import Data
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import validation_batches
from kiloseg.data.writing.shard import Sample, write_shard

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # fewer cores than workers
]


@pytest.mark.parametrize("val_batch_size", [1, 4, 16])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_gives_each_sample_once_in_order(numbered, world, val_batch_size):
    data = plain(numbered, loader_workers=0, val_batch_size=val_batch_size)
    info = read_info(numbered)
    seen = []
    for rank in range(world):
        batches = [identities(batch) for batch in validation_batches(data, info, rank=rank, world=world)]
        assert all(len(batch) == val_batch_size for batch in batches[:-1])
        seen += [identity for batch in batches for identity in batch]
    assert seen == list(range(11))


@pytest.mark.parametrize(("world", "loader_workers"), [(1, 1), (1, 2), (1, 3), (2, 3), (3, 2)])
def test_validation_gives_each_sample_once_from_loader_workers(numbered, world, loader_workers):
    data = plain(numbered, loader_workers=loader_workers, val_batch_size=2)
    seen = []
    for rank in range(world):
        batches = validation_batches(data, read_info(numbered), rank=rank, world=world)
        once = [identity for batch in batches for identity in identities(batch)]
        assert [identity for batch in batches for identity in identities(batch)] == once, "a second pass"
        seen += once
    assert sorted(seen) == list(range(11))


def test_validation_batches_do_not_depend_on_loader_processes(squares):
    """Nor does their padding, which a network may notice."""
    want = list(validation_batches(Data(path=str(squares), loader_workers=0, val_batch_size=4), read_info(squares)))
    for loader_workers in (1, 3):
        data = Data(path=str(squares), loader_workers=loader_workers, val_batch_size=4)
        assert same(validation_batches(data, read_info(squares)), want)


def test_more_workers_than_validation_samples(numbered):
    data = plain(numbered, loader_workers=0, val_samples=2)
    shares = [list(validation_batches(data, read_info(numbered), rank=rank, world=4)) for rank in range(4)]
    assert [[identities(batch) for batch in share] for share in shares] == [[[0]], [[1]], [], []]


@pytest.mark.parametrize(("val_samples", "expected"), [(1, 1), (7, 7), (11, 11), (99, 11), (None, 11)])
@pytest.mark.parametrize("loader_workers", [0, 2])
def test_val_samples_takes_the_first(numbered, val_samples, expected, loader_workers):
    data = plain(numbered, loader_workers=loader_workers, val_samples=val_samples, val_batch_size=3)
    seen = [identity for batch in validation_batches(data, read_info(numbered)) for identity in identities(batch)]
    assert sorted(seen) == list(range(expected))


def test_validation_pads_odd_sizes_with_ignored_pixels(tmp_path):
    sizes = [(40, 50), (33, 64), (64, 20), (1, 1)]
    rng = np.random.default_rng(1)
    masks = [rng.integers(0, 200, size) for size in sizes]
    samples = [
        Sample(key=f"k{i}", image=encoded(np.repeat(mask[..., None], 3, 2).astype(np.uint8) + 1), mask=mask)
        for i, mask in enumerate(masks)
    ]
    shard, _ = write_shard(tmp_path / "val.tar", samples, num_classes=200)
    info = described(tmp_path, [shard], 200, split="val")
    data = Data(path=str(tmp_path), val_batch_size=2, loader_workers=0)
    batches = list(validation_batches(data, info))
    assert [tuple(batch.labels.shape) for batch in batches] == [(2, 64, 64), (2, 64, 32)]
    labels = [label for batch in batches for label in batch.labels]
    images = [image for batch in batches for image in batch.images]
    for mask, label, image in zip(masks, labels, images, strict=True):
        height, width = mask.shape
        assert torch.equal(label[:height, :width], torch.from_numpy(mask))
        assert (label >= 0).sum() == mask.size, "all else is ignored"
        assert torch.equal(image[0, :height, :width].long(), torch.from_numpy(mask) + 1)
