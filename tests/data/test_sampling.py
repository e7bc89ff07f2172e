"""Repeat factors against numbers worked out by hand, epochs with repeats, and crops placed over rare classes."""

import dataclasses
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from numbered import described, identities, numbered_samples, plain

from kiloseg.config import Data
from kiloseg.data.classes import select_classes
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import read_info
from kiloseg.data.index import read_index, write_index
from kiloseg.data.reading.loader import TrainBatches
from kiloseg.data.reading.sampling import Repeats, SampleClasses
from kiloseg.data.reading.transforms import Augment, NoSuchPixelError
from kiloseg.data.writing.shard import Sample, write_shard
from kiloseg.storage.errors import DataError

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # fewer cores than workers
    pytest.mark.usefixtures("one_thread"),
]

TOTAL = 24


def rarity(sample):
    """Classes that the index gives a sample: 0 is in all 24, 1 in 6, 2 in the last one alone."""
    return [0] + [1] * (sample % 4 == 3) + [2] * (sample == TOTAL - 1)


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """24 samples that can be told apart by their pixels, in shards of 10, 6 and 8, with an index of three other classes."""
    directory = tmp_path_factory.mktemp("rare")
    shards, rows, start = [], [], 0
    for number, count in enumerate((10, 6, 8)):
        samples = numbered_samples(range(start, start + count))
        shard, shard_rows = write_shard(directory / f"train-{number:06d}.tar", samples, num_classes=300)
        for row in shard_rows:
            ids = rarity(start)
            rows.append(row | {"split": "train", "class_ids": ids, "class_pixels": [1] * len(ids)})
            start += 1
        shards.append(shard)
    write_index(directory, rows)
    described(directory, shards, 300)
    return directory


def sample_classes(directory, **changes):
    data, info = Data(path=str(directory), **changes), read_info(directory)
    return SampleClasses(read_index(directory, "train"), info.shards("train"), select_classes(data, info))


# Repeat factors


def test_classes_of_samples_follow_the_shards(rare, tmp_path):
    classes = sample_classes(rare)
    assert [classes[sample].tolist() for sample in range(TOTAL)] == [rarity(sample) for sample in range(TOTAL)]
    assert classes.samples_per_class[:4].tolist() == [24, 6, 1, 0]
    # Rows in another order, as shards end up that are written side by side.
    rows = read_index(rare).to_pylist()
    write_index(tmp_path, rows[10:] + rows[:10])
    info = read_info(rare)
    moved = SampleClasses(
        read_index(tmp_path, "train"), info.shards("train"), select_classes(Data(path=str(rare)), info)
    )
    assert np.array_equal(moved.labels, classes.labels)
    assert np.array_equal(moved.starts, classes.starts)


@pytest.mark.parametrize("threshold", [0.0, 1 / 24, 0.1, 0.25, 1.0])
def test_repeat_factors_by_hand(rare, threshold):
    of_class = [max(1, math.sqrt(threshold / share)) for share in (1, 6 / 24, 1 / 24)]
    expected = [max(of_class[c] for c in rarity(sample)) for sample in range(TOTAL)]
    assert sample_classes(rare).repeat_factors(threshold) == pytest.approx(expected)
    assert (max(expected) > 1) == (threshold > 1 / 24)


def test_classes_that_are_not_used_make_no_repeats(rare):
    classes = sample_classes(rare, num_classes=2)
    assert [classes[sample].tolist() for sample in range(TOTAL)] == [rarity(s)[:2] for s in range(TOTAL - 1)] + [[0, 1]]
    assert classes.repeat_factors(0.25).tolist() == [1.0] * TOTAL


def test_counts_are_floor_or_ceiling_and_right_on_average():
    factors = 1 + 2 * np.random.default_rng(0).random(200) ** 2
    factors[:3] = 1.0, 2.0, 1.0000001
    repeats = Repeats(factors)
    counts = np.stack([repeats.counts(seed=5, epoch=epoch) for epoch in range(2000)])
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.ceil(factors)).all()
    assert set(counts.sum(1)) == {repeats.least, repeats.least + 1}
    assert repeats.least == int(factors.sum())
    assert counts.mean(0) == pytest.approx(factors, abs=0.05)  # 4.5 standard errors of a coin tossed 2,000 times
    # Which are rounded up is drawn anew, and not in fixed company.
    one, other = np.flatnonzero(np.abs(factors % 1 - 0.5) < 0.2)[:2]
    assert abs(np.corrcoef(counts[:, one], counts[:, other])[0, 1]) < 0.1
    assert np.array_equal(repeats.counts(5, 7), Repeats(factors).counts(5, 7))
    assert not np.array_equal(repeats.counts(5, 7), repeats.counts(6, 7))


def batches_with_repeats(directory, *, batch_size=6, world=1, rank=0, seed=0, **changes):
    data = plain(directory, repeat_threshold=0.9, **changes)
    return TrainBatches(data, read_info(directory), batch_size=batch_size, seed=seed, rank=rank, world=world)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("batch_size", "loader_workers"), [(2, 0), (6, 2), (4, 3)])
def test_every_repeat_once_an_epoch(rare, batch_size, world, loader_workers):
    factors = sample_classes(rare).repeat_factors(0.9)
    assert sorted(set(np.round(factors, 3))) == [1.0, 1.897, 4.648]
    repeats = Repeats(factors)
    assert repeats.least == 32, "17 + 6 * 1.897 + 4.648 = 32.1 or so"
    ranks = [
        batches_with_repeats(rare, batch_size=batch_size, rank=rank, world=world, loader_workers=loader_workers)
        for rank in range(world)
    ]
    for epoch in range(3):
        counts = repeats.counts(0, epoch)
        seen = Counter()
        for batches in ranks:
            assert batches.steps_per_epoch == 32 // batch_size
            got = [identities(batch) for batch in batches.epoch(epoch)]
            assert [len(batch) for batch in got] == [batch_size // world] * batches.steps_per_epoch
            seen.update(identity for batch in got for identity in batch)
        wanted = Counter(dict(enumerate(counts.tolist())))
        assert seen.total() == 32 // batch_size * batch_size
        assert not seen - wanted, "none comes more often than its count"
        assert (wanted - seen).total() == counts.sum() - seen.total() < batch_size + 1, "only the remainder is left out"


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_repeats_resume_inside_an_epoch(rare, loader_workers):
    whole = [identities(batch) for batch in batches_with_repeats(rare, loader_workers=loader_workers).epoch(1)]
    assert whole != [identities(batch) for batch in batches_with_repeats(rare, loader_workers=loader_workers).epoch(0)]
    for skip in range(len(whole) + 1):
        resumed = batches_with_repeats(rare, loader_workers=loader_workers).epoch(1, skip=skip)
        assert [identities(batch) for batch in resumed] == whole[skip:]


def test_repeats_of_a_sample_are_augmented_differently(rare):
    data = Data(path=str(rare), crop=32, jitter=1.0, repeat_threshold=0.9, loader_workers=0)
    (batch,) = TrainBatches(data, read_info(rare), batch_size=32, seed=0).epoch(0)
    repeats = [image for image, labels in zip(*batch, strict=True) if labels.max() == TOTAL - 1]
    assert len(repeats) in (4, 5)
    assert len({image.numpy().tobytes() for image in repeats}) == len(repeats)


# Crops


def dotted(directory, count=4, size=200):
    """Images of class 0 with 6 x 6 pixels of class 1, which all have, and of class 2 or 3: the last sample alone has 3."""
    rng = np.random.default_rng(3)
    samples = []
    for number in range(count):
        mask = np.zeros((size, size), dtype=int)
        for c in (1, 3 if number == count - 1 else 2):
            top, left = rng.integers(0, size // 2 - 6, 2) + (c > 1) * size // 2
            mask[top : top + 6, left : left + 6] = c
        mask[0] = IGNORE_ID
        samples.append(Sample(key=f"k{number}", image=np.zeros((size, size, 3), dtype=np.uint8), mask=mask))
    shard, rows = write_shard(directory / "train.tar", samples, num_classes=4)
    write_index(directory, [{"split": "train", **row} for row in rows])
    return described(directory, [shard], 4)


def share_of_crops(directory, info, class_crops, exponent=0.5):
    """Share of crops with a pixel of each class, over 100 epochs."""
    data = Data(
        path=str(directory), crop=32, scale_min=1.0, scale_max=1.0, class_crops=class_crops, class_crops_exponent=exponent,
        loader_workers=0,
    )  # fmt: skip
    batches = TrainBatches(data, info, batch_size=4, seed=0)
    crops = torch.cat([labels for epoch in range(100) for _, labels in batches.epoch(epoch)])
    return [(crops == c).flatten(1).any(1).double().mean().item() for c in range(4)]


def test_class_crops_favor_rare_classes(tmp_path):
    info = dotted(tmp_path)
    anywhere, chosen = share_of_crops(tmp_path, info, 0.0), share_of_crops(tmp_path, info, 1.0)
    # Classes 0 and 1 are in all 4 samples, 2 in three, 3 in one: weights 1/2, 1/2, 1/sqrt(3), 1.
    weight = 1 / math.sqrt(3)
    assert anywhere[3] < 0.06
    assert anywhere[2] < 0.12
    assert chosen[3] >= 0.25 * 0.5 - 0.06
    assert chosen[3] == pytest.approx(0.25 * 1 / (0.5 + 0.5 + 1), abs=0.05)
    assert chosen[2] == pytest.approx(0.75 * weight / (0.5 + 0.5 + weight), abs=0.07)
    for exponent in (0.0, 2.0):
        weights = [4**-exponent, 4**-exponent, 3**-exponent, 1]
        other = share_of_crops(tmp_path, info, 1.0, exponent)
        assert other[3] == pytest.approx(0.25 / sum(weights), abs=0.05)
    half = share_of_crops(tmp_path, info, 0.5)
    assert half[2] == pytest.approx((anywhere[2] + chosen[2]) / 2, abs=0.07)


def test_crops_without_class_crops_are_those_of_before(rare):
    """The draws for one have no influence on the other."""
    crops = [
        list(TrainBatches(dataclasses.replace(data, loader_workers=0), read_info(rare), batch_size=6, seed=1).epoch(0))
        for data in (Data(path=str(rare), crop=32), Data(path=str(rare), crop=32, class_crops=1e-9))
    ]
    assert all(torch.equal(one.images, other.images) for one, other in zip(*crops, strict=True))


@pytest.mark.parametrize("scale", [0.2, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("place", [(0, 0), (0, 99), (79, 0), (79, 99), (40, 50)])
def test_crop_over_a_label_holds_it(scale, place):
    labels = np.zeros((80, 100), dtype=np.int32)
    labels[place[0] // 8 * 8 :, place[1] // 10 * 10 :][:8, :10] = 7
    augment = Augment(Data(crop=32, scale_min=scale, scale_max=scale, jitter=0.0))
    image = np.zeros((80, 100, 3), dtype=np.uint8)
    corners, missed = set(), 0
    for seed in range(40):
        _, crop = augment(image, labels, seed, over=7)
        inside = (crop == 7).nonzero()
        if len(inside):
            corners.add(tuple(inside[0].tolist()))
        missed += not len(inside)
    # Halving leaves out every other row and column, and with them sometimes the only one in the window.
    assert missed == 0 if scale >= 1 else missed <= 4
    assert len(corners) > 3 or scale <= 0.2, "it lies anywhere in the crop"
    with pytest.raises(NoSuchPixelError):
        augment(image, labels, 0, over=8)


def test_rare_class_of_a_sample_without_any(tmp_path):
    samples = [
        Sample(key=f"k{n}", image=np.zeros((32, 32, 3), dtype=np.uint8), mask=np.full((32, 32), value))
        for n, value in enumerate((IGNORE_ID, 1))
    ]
    shard, rows = write_shard(tmp_path / "train.tar", samples, num_classes=2)
    write_index(tmp_path, [{"split": "train", **row} for row in rows])
    info = described(tmp_path, [shard], 2)
    classes = sample_classes(tmp_path)
    assert classes.rare_class(0, random.Random(0)) is None
    assert classes.rare_class(1, random.Random(0)) == 1
    assert classes.repeat_factors(1.0).tolist() == pytest.approx([1.0, math.sqrt(2)])
    data = Data(path=str(tmp_path), crop=32, class_crops=1.0, loader_workers=0)
    ((_, labels),) = TrainBatches(data, info, batch_size=2, seed=0).epoch(0)
    assert set(labels.unique().tolist()) == {-1, 1}


# An index that cannot be gone by


@pytest.mark.parametrize("changes", [{"repeat_threshold": 0.1}, {"class_crops": 0.5}, {"num_classes": 2}])
def test_settings_that_need_an_index_say_so(tmp_path, changes):
    info = dotted(tmp_path)
    (tmp_path / "index.parquet").unlink()
    data = Data(path=str(tmp_path), crop=32, loader_workers=0, **changes)
    with pytest.raises(DataError, match=r"index.parquet does not exist; build the data set again"):
        TrainBatches(data, info, batch_size=2, seed=0)
    assert TrainBatches(Data(path=str(tmp_path), crop=32), info, batch_size=2, seed=0).steps_per_epoch == 2


def test_index_of_other_samples_is_refused(tmp_path):
    info = dotted(tmp_path)
    write_index(tmp_path, read_index(tmp_path).to_pylist()[1:])
    data = Data(path=str(tmp_path), crop=32, repeat_threshold=0.1, loader_workers=0)
    with pytest.raises(DataError, match=r"lists 3 samples of train.tar, dataset.json 4; build the data set again"):
        TrainBatches(data, info, batch_size=2, seed=0)


def test_class_that_the_index_lists_and_the_mask_lacks(rare):
    data = plain(rare, class_crops=1.0, loader_workers=0)
    with pytest.raises(DataError, match=r"sample sample\d+: its mask has no pixel of class 'class \d', though index"):
        list(TrainBatches(data, read_info(rare), batch_size=6, seed=0).epoch(0))
