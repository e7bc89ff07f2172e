"""Shards keep every id, an epoch gives every sample once, resuming gives the same batches, labels stay on their pixels."""

import dataclasses
import hashlib
import io
import itertools
import json
import random

import numpy as np
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
import webdataset
from conftest import write_dataset
from PIL import Image

from kiloseg.config import Data
from kiloseg.data.classes import Classes, count_classes, iou_table, label_table, select_classes
from kiloseg.data.codec import IGNORE_ID, decode_image, decode_mask, encode_mask
from kiloseg.data.description import DatasetInfo, Shard, read_info, write_info
from kiloseg.data.index import class_samples, read_index, write_index
from kiloseg.data.reading.loader import TrainBatches, validation_batches
from kiloseg.data.reading.transforms import Augment
from kiloseg.data.writing.build import plan_shards, up_to_date
from kiloseg.data.writing.shard import Sample, write_shard
from kiloseg.storage.errors import DataError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # fewer cores than workers
]

BIG = 40_000

reads_by_webdataset = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # its own reader leaves it open


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def described(directory, shards, num_classes, *, split="train", background=None):
    """A data set of finished shards, read back from its file."""
    info = DatasetInfo(
        name="numbered",
        classes=[f"class {c}" for c in range(num_classes)],
        background=background,
        license="none",
        command="tests",
        recipe={"of": "tests"},
        splits={split: shards} if isinstance(shards, list) else shards,
    )
    write_info(directory, info)
    assert read_info(directory) == info
    return info


def numbered_samples(indices):
    """Sample i has red i % 256, green i // 256 and label i in all its pixels."""
    for index in indices:
        image = np.zeros((32, 32, 3), dtype=np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = index % 256, index // 256, 77
        yield Sample(key=f"sample{index:05d}", image=encoded(image), mask=np.full((32, 32), index))


SHARDS = (13, 9, 20)
TOTAL = sum(SHARDS)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """42 samples in three shards, each with an identity that can be read off its pixels."""
    directory = tmp_path_factory.mktemp("numbered")
    splits = {}
    for split, counts in {"train": SHARDS, "val": (5, 6)}.items():
        start = 0
        for number, count in enumerate(counts):
            samples = numbered_samples(range(start, start + count))
            shard, _ = write_shard(directory / f"{split}-{number:06d}.tar", samples, num_classes=300)
            splits.setdefault(split, []).append(shard)
            start += count
    described(directory, splits, 300)
    return directory


def plain(directory, **changes):
    """Training samples as they are stored: nothing random but their order."""
    return Data(path=str(directory), crop=32, scale_min=1.0, scale_max=1.0, flip=0.0, jitter=0.0, **changes)


def identities(batch):
    """Sample numbers of a batch, read off images and labels."""
    images, labels = batch
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    by_image = images[:, 0, 0, 0].long() + 256 * images[:, 1, 0, 0].long()
    assert (images[:, 2] == 77).all()
    assert (labels == by_image[:, None, None]).all(), "image and labels of different samples"
    return by_image.tolist()


def train_batches(directory, *, batch_size=6, seed=0, rank=0, world=1, **changes):
    return TrainBatches(
        plain(directory, **changes), read_info(directory), batch_size=batch_size, seed=seed, rank=rank, world=world
    )


# Format


@reads_by_webdataset
def test_ids_over_255_and_32767_survive_from_shard_to_batch(tmp_path):
    ids = np.array([0, 255, 256, 32767, 32768, BIG - 1, IGNORE_ID])
    mask = ids[np.arange(64)[:, None] // 8 % 7 + np.zeros(64, dtype=int)]
    picture = encoded(np.zeros((64, 64, 3), dtype=np.uint8))
    splits, rows = {}, []
    for split in ("train", "val"):
        sample = Sample(key="only", image=picture, mask=mask)
        shard, shard_rows = write_shard(tmp_path / f"{split}.tar", [sample], num_classes=BIG)
        splits[split] = [shard]
        rows += shard_rows
    assert rows[0]["class_ids"] == ids[:-1].tolist()
    assert rows[0]["class_pixels"] == [2 * 8 * 64] + [8 * 64] * 5

    (stored,) = webdataset.WebDataset(str(tmp_path / "val.tar"), shardshuffle=False)
    with Image.open(io.BytesIO(stored["mask.png"])) as png:
        assert png.mode.startswith("I")
        assert np.array_equal(np.asarray(png), mask)

    info = described(tmp_path, splits, BIG)
    expected = torch.from_numpy(np.where(mask == IGNORE_ID, -1, mask))
    data = Data(path=str(tmp_path), crop=64, scale_min=1.0, scale_max=1.0, flip=0.0, jitter=0.0, loader_workers=0)
    ((_, labels),) = validation_batches(data, info)
    assert torch.equal(labels[0], expected)
    (batch,) = TrainBatches(data, info, batch_size=1, seed=0).epoch(0)
    assert torch.equal(batch.labels[0], expected)
    # Halved, ids must still be picked and not mixed or rounded.
    halved = dataclasses.replace(data, scale_min=0.5, scale_max=0.5)
    (batch,) = TrainBatches(halved, info, batch_size=1, seed=0).epoch(0)
    assert set(batch.labels.unique().tolist()) == {-1, *ids[:-1].tolist()}


@pytest.mark.parametrize("loader_workers", [0, 1])
@pytest.mark.parametrize("num_classes", [32_767, 32_768, 65_535])
def test_every_label_survives_where_the_type_of_labels_changes(tmp_path, num_classes, loader_workers):
    mask = np.full((32, 32), IGNORE_ID)
    mask[:, :8], mask[:, 8:16], mask[:, 16:24] = 0, num_classes - 1, num_classes // 2
    samples = [Sample(key="a", image=np.zeros((32, 32, 3), np.uint8), mask=mask)]
    shard, rows = write_shard(tmp_path / "train-000000.tar", samples, num_classes=num_classes)
    write_index(tmp_path, [{"split": split, **row} for row in rows for split in ("train", "val")])
    info = described(tmp_path, {"train": [shard], "val": [shard]}, num_classes)
    few = plain(tmp_path, num_classes=3, loader_workers=loader_workers)
    for data, labels in (
        (plain(tmp_path, loader_workers=loader_workers), [0, num_classes - 1, num_classes // 2, -1]),
        (few, [0, 2, 1, -1]),
    ):
        for batches in (TrainBatches(data, info, batch_size=1, seed=0).epoch(0), validation_batches(data, info)):
            (batch,) = batches
            assert batch.labels[0, :, ::8].tolist() == [labels] * 32


@pytest.mark.parametrize("wrong", [32_767, 32_768, 50_000, 65_534])
def test_ids_of_no_class_are_found_in_either_half_of_16_bits(tmp_path, wrong):
    mask = np.full((32, 32), IGNORE_ID)
    mask[5, 5] = wrong
    samples = [Sample(key="a", image=np.zeros((32, 32, 3), np.uint8), mask=mask)]
    shard, _ = write_shard(tmp_path / "train-000000.tar", samples, num_classes=65_535)
    info = described(tmp_path, [shard], 32_767)
    batches = TrainBatches(plain(tmp_path, loader_workers=0), info, batch_size=1, seed=0)
    with pytest.raises(DataError, match=f"sample a: mask has class id {wrong}, expected 0 to 32766"):
        next(batches.epoch(0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.uint64])
def test_mask_of_any_integer_type_round_trips(dtype):
    top = min(np.iinfo(dtype).max, IGNORE_ID)
    mask = np.array([[0, 1, 255], [top, top - 1, top // 2]]).astype(dtype)
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)
    assert decode_mask(encode_mask(mask)).dtype == np.uint16


@reads_by_webdataset
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_of_an_image_are_stored_as_they_are(tmp_path, kind):
    content = encoded(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8), kind)
    sample = Sample(key="given", image=content, mask=np.zeros((20, 30), dtype=int), meta={"b": 1, "a": "ü"})
    write_shard(tmp_path / "s.tar", [sample], num_classes=2)
    (stored,) = webdataset.WebDataset(str(tmp_path / "s.tar"), shardshuffle=False)
    suffix = "jpg" if kind == "JPEG" else "png"
    assert stored[suffix] == content
    assert {name for name in stored if not name.startswith("__")} == {suffix, "mask.png", "json"}
    assert stored["__key__"] == "given"
    assert json.loads(stored["json"]) == {"a": "ü", "b": 1}
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(decode_image(stored[suffix]), np.asarray(image))


def test_grayscale_jpeg_becomes_three_equal_channels(tmp_path):
    gray = encoded(np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8), "JPEG")
    with Image.open(io.BytesIO(gray)) as image:
        assert image.mode == "L"
        expected = torch.from_numpy(np.array(image))
    shard, _ = write_shard(
        tmp_path / "s.tar", [Sample(key="gray", image=gray, mask=np.zeros((32, 32), dtype=int))], num_classes=2
    )
    info = described(tmp_path, [shard], 2, split="val")
    ((images, _),) = validation_batches(Data(path=str(tmp_path), loader_workers=0), info)
    assert images.shape == (1, 3, 32, 32)
    assert all(torch.equal(channel, expected) for channel in images[0])


def test_equal_samples_give_equal_shards(tmp_path):
    records = []
    for folder, changed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        rng = np.random.default_rng(5)
        samples = [
            Sample(
                key=f"k{i}",
                image=rng.integers(0, 256, (16, 24, 3), dtype=np.uint8),
                mask=np.full((16, 24), i + changed),
                meta={"i": i, "z": [1, 2]},
            )
            for i in range(3)
        ]
        shard, _ = write_shard(tmp_path / folder / "s.tar", samples, num_classes=9)
        content = (tmp_path / folder / "s.tar").read_bytes()
        assert shard == Shard(name="s.tar", samples=3, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        records.append(shard)
    assert records[0] == records[1]
    assert records[0].sha256 != records[2].sha256
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["s.tar"], "nothing else is left"


def test_index_counts_pixels_by_hand(tmp_path):
    first = np.array([[3, 3, 3, 0], [IGNORE_ID, 300, 300, 0]])
    second = np.full((1, 5), IGNORE_ID)
    third = np.full((2, 2), 300)
    samples = [
        Sample(key=name, image=np.zeros((*mask.shape, 3), dtype=np.uint8), mask=mask)
        for name, mask in (("first", first), ("second", second), ("third", third))
    ]
    _, rows = write_shard(tmp_path / "train-000000.tar", samples[:2], num_classes=301)
    _, more = write_shard(tmp_path / "val-000000.tar", samples[2:], num_classes=301)
    write_index(tmp_path, [{"split": "train", **row} for row in rows] + [{"split": "val", **row} for row in more])

    table = pyarrow.parquet.read_table(tmp_path / "index.parquet")
    assert table.column_names == ["key", "split", "shard", "height", "width", "class_ids", "class_pixels"]
    train, val = "train-000000.tar", "val-000000.tar"
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        ("first", "train", train, 2, 4, [0, 3, 300], [2, 3, 2]),
        ("second", "train", train, 1, 5, [], []),
        ("third", "val", val, 2, 2, [300], [4]),
    ]
    assert read_index(tmp_path, "train")["key"].to_pylist() == ["first", "second"]
    assert read_index(tmp_path).num_rows == 3
    counts = class_samples(read_index(tmp_path), 301)
    assert counts.shape == (301,)
    assert {c: int(counts[c]) for c in np.flatnonzero(counts)} == {0: 1, 3: 1, 300: 2}
    assert class_samples(read_index(tmp_path, "val"), 301).sum() == 1


def example_info(**changes):
    shards = [Shard(name=f"{n}.tar", samples=n + 1, bytes=10, sha256=f"{n:064d}") for n in range(3)]
    fields = {
        "name": "example",
        "classes": ["Hintergrund", "Bäume", "木"],
        "background": 0,
        "license": "CC0",
        "command": "python make.py",
        "recipe": {"size": [1, 2], "seed": 0},
        "splits": {"train": shards[:2], "val": shards[2:]},
    }
    return DatasetInfo(**fields | changes)


@pytest.mark.parametrize("changes", [{}, {"background": None}, {"recipe": {}}, {"splits": {}}])
def test_description_round_trips(tmp_path, changes):
    info = example_info(**changes)
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    assert read_info(str(tmp_path)).digest == info.digest
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    content = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    assert content["format"] == "kiloseg-shards-1"
    assert content["num_classes"] == 3
    assert content["ignore_id"] == 65535
    assert content["classes"] == ["Hintergrund", "Bäume", "木"]


def test_digest_follows_samples_and_nothing_else():
    info = example_info()
    train, val = info.splits["train"], info.splits["val"]
    same = [{"name": "other"}, {"license": "MIT"}, {"command": "make"}, {"recipe": {"seed": 1}}, {"background": None}]
    same.append({"splits": {"val": val, "train": train}})
    other = [
        {"classes": ["Hintergrund", "Bäume", "水"]},
        {"classes": ["Bäume", "Hintergrund", "木"]},
        {"splits": {"train": train[::-1], "val": val}},
        {"splits": {"train": train[:1], "val": val}},
        {"splits": {"train": val, "val": train}},
        {"splits": {"train": [dataclasses.replace(train[0], sha256="f" * 64), train[1]], "val": val}},
    ]
    assert {example_info(**changes).digest for changes in same} == {info.digest}
    assert len({example_info(**changes).digest for changes in other} | {info.digest}) == len(other) + 1


def test_plan_of_shards_covers_a_split_once():
    tasks = plan_shards("val", 25, 10)
    assert [(task.name, task.start, task.stop) for task in tasks] == [
        ("val-000000.tar", 0, 10),
        ("val-000001.tar", 10, 20),
        ("val-000002.tar", 20, 25),
    ]
    assert [task.stop for task in plan_shards("val", 20, 10)] == [10, 20]
    assert plan_shards("val", 0, 10) == []


def test_up_to_date_means_whole_and_of_this_recipe(tmp_path):
    shards = [write_shard(tmp_path / f"{n}.tar", numbered_samples([n]), num_classes=300)[0] for n in range(2)]
    assert not up_to_date(tmp_path, {"of": "tests"}), "no description yet"
    described(tmp_path, {"train": shards[:1], "val": shards[1:]}, 300)
    assert not up_to_date(tmp_path, {"of": "tests"}), "no index yet"
    row = {"key": "a", "split": "train", "shard": "0.tar", "height": 1, "width": 1, "class_ids": [], "class_pixels": []}
    write_index(tmp_path, [row, {**row, "split": "val", "shard": "1.tar"}])
    assert up_to_date(tmp_path, {"of": "tests"})
    assert not up_to_date(tmp_path, {"of": "others"})
    (tmp_path / "1.tar").write_bytes(b"short")
    assert not up_to_date(tmp_path, {"of": "tests"})
    (tmp_path / "1.tar").unlink()
    assert not up_to_date(tmp_path, {"of": "tests"})
    assert not up_to_date(tmp_path / "nowhere", {"of": "tests"})


# Epochs


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


def same(batches, others):
    """Whether two sequences of batches hold equal images and labels."""
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        for one, other in zip(batches, others, strict=True)
    )


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


# Validation


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


# Classes


def counted(directory, samples_per_class, background=None):
    """A validation image with a row of every class and of ignored pixels, and an index of training samples."""
    num_classes = len(samples_per_class)
    mask = np.repeat([*range(num_classes), IGNORE_ID], 8)[:, None] + np.zeros((1, 32), dtype=int)
    image = np.zeros((*mask.shape, 3), dtype=np.uint8)
    shard, rows = write_shard(directory / "val.tar", [Sample(key="k", image=image, mask=mask)], num_classes=num_classes)
    rows = [{"split": "val", **row} for row in rows]
    for sample in range(max(samples_per_class)):
        ids = [c for c, count in enumerate(samples_per_class) if sample < count]
        rows.append(rows[0] | {"split": "train", "class_ids": ids, "class_pixels": [1] * len(ids)})
    write_index(directory, rows)
    return described(directory, [shard], num_classes, split="val", background=background)


@pytest.mark.parametrize(
    ("samples_per_class", "num_classes", "background", "kept"),
    [
        ((5, 1, 4, 4, 0, 9), None, None, [0, 1, 2, 3, 4, 5]),
        ((5, 1, 4, 4, 0, 9), 6, None, [0, 1, 2, 3, 4, 5]),
        ((5, 1, 4, 4, 0, 9), 2, None, [0, 5]),
        ((5, 1, 4, 4, 0, 9), 3, None, [0, 2, 5]),  # of 2 and 3, equally frequent, the lower
        ((5, 1, 4, 4, 0, 9), 3, 4, [0, 4, 5]),  # the background, though it is the rarest
        ((5, 1, 4, 4, 0, 9), 3, 5, [0, 2, 5]),
        ((9, 7, 6, 3, 2, 1), 4, 0, [0, 1, 2, 3]),  # in order of frequency: the first
        ((4, 4, 4, 4, 4, 4), 4, None, [0, 1, 2, 3]),
        ((1, 0, 0, 0, 0, 0), 3, None, [0, 1, 2]),  # fewer occur than are asked for
    ],
)
def test_most_frequent_classes_are_kept(tmp_path, samples_per_class, num_classes, background, kept):
    info = counted(tmp_path, samples_per_class, background)
    data = Data(path=str(tmp_path), num_classes=num_classes, loader_workers=0)
    classes = select_classes(data, info)
    assert classes.ids.tolist() == kept
    assert classes.names == [f"class {c}" for c in kept]
    assert classes.background == (None if background is None else kept.index(background))
    assert count_classes(data, info) == len(classes) == len(kept)
    rest = -1 if background is None else kept.index(background)
    ((_, labels),) = validation_batches(data, info)
    expected = [kept.index(c) if c in kept else rest for c in range(6)]
    assert labels[0, : 7 * 8 : 8, 0].tolist() == [*expected, -1]
    ((_, labels),) = validation_batches(dataclasses.replace(data, other_classes="ignore"), info)
    expected = [kept.index(c) if c in kept else -1 for c in range(6)]
    assert labels[0, : 7 * 8 : 8, 0].tolist() == [*expected, -1]


def test_reports_name_the_classes_that_were_kept(tmp_path):
    counted(tmp_path, (5, 1, 4, 4, 0, 9))
    table = iou_table(Data(path=str(tmp_path), num_classes=3), [0.5, float("nan"), 0.25])
    assert table == {"class_id": [0, 2, 5], "name": ["class 0", "class 2", "class 5"], "iou": [0.5, None, 0.25]}


def test_classes_are_counted_in_training_samples_only(tmp_path):
    info = counted(tmp_path, (2, 0, 3, 2))
    index = read_index(tmp_path).to_pylist()
    only_in_val = index[0] | {"class_ids": [1], "class_pixels": [9]}
    write_index(tmp_path, [*index, *[only_in_val] * 20])
    assert select_classes(Data(path=str(tmp_path), num_classes=2), info).ids.tolist() == [0, 2]


def test_fewer_classes_without_an_index(tmp_path):
    info = counted(tmp_path, (2, 1, 3))
    (tmp_path / "index.parquet").unlink()
    assert len(select_classes(Data(path=str(tmp_path)), info)) == 3, "all classes need none"
    with pytest.raises(DataError, match=r"index.parquet does not exist; build the data set again"):
        select_classes(Data(path=str(tmp_path), num_classes=2), info)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"index.parquet is damaged \("):
        select_classes(Data(path=str(tmp_path), num_classes=2), info)


def test_label_table_by_hand():
    info = example_info(background=1)
    table = label_table(info, Classes(ids=np.array([1, 2]), names=["b", "c"], background=0, others=0))
    assert table.shape == (65536,)
    assert table[:3].tolist() == [0, 0, 1]
    assert table[65535] == -1
    assert set(table[3:65535].tolist()) == {-2}, "ids that the data set lacks are told from ignored ones"
    table = label_table(info, Classes(ids=np.array([0, 2]), names=["a", "c"], background=None))
    assert table[:3].tolist() == [0, -1, 1]
    background_alone = dataclasses.replace(example_info(background=1), classes=["a", "b"])
    kept = Classes(ids=np.array([1]), names=["b"], background=0)
    assert label_table(background_alone, kept)[:2].tolist() == [-1, 0], "the others may be ignored beside a background"
    largest = dataclasses.replace(example_info(background=None), classes=[""] * 65535)
    assert np.array_equal(label_table(largest, select_classes(Data(), largest)), [*range(65535), -1])


# Augmentation


def stripes(size, axis):
    """A mask of 0 and 1 in stripes of 16 pixels, black and white in the image."""
    mask = (np.arange(size) // 16 % 2).astype(np.int32)
    mask = np.repeat(mask[:, None], size, 1) if axis == 0 else np.repeat(mask[None], size, 0)
    return np.repeat(mask[..., None] * np.uint8(255), 3, 2).astype(np.uint8), mask


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.31, 0.31), (0.7, 0.7), (1.0, 1.0), (1.37, 1.37), (3.3, 3.3)])
def test_labels_stay_on_their_pixels(axis, low, high):
    image, mask = stripes(128, axis)
    augment = Augment(Data(crop=64, scale_min=low, scale_max=high, jitter=0.0, flip=0.5))
    clear = 0
    for seed in range(40):
        changed, labels = augment(image, mask, seed)
        # Padding is black too, so the pixels it blends with are left out, at the border of the crop also.
        inside = F.max_pool2d(F.pad((labels < 0).float()[None], (2, 2, 2, 2), value=1), 5, stride=1)[0] == 0
        brightness = changed[0].double() / 255
        # A blended pixel belongs to the stripe that gives more of it; halves are left to either.
        told = inside & ((brightness - 0.5).abs() > 0.02)
        assert torch.equal((brightness > 0.5)[told].long(), labels[told]), seed
        clear += told.sum().item() / inside.sum().item()
    assert clear / 40 > 0.8, "nearly all pixels were compared"


def positions(height, width):
    """Red is the row and green the column of every pixel; the label is made of both."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.full_like(rows, 255)], 2).astype(np.uint8)
    return image, (rows * 256 + columns).astype(np.int32)


def test_crop_without_scaling_is_a_window_of_the_image_or_its_mirror():
    image, mask = positions(100, 120)
    augment = Augment(Data(crop=64, scale_min=1.0, scale_max=1.0, jitter=0.0, flip=0.5))
    corners, mirrored = set(), 0
    for seed in range(200):
        changed, labels = augment(image, mask, seed)
        rows, columns = labels // 256, labels % 256
        assert torch.equal(changed[0].long(), rows)
        assert torch.equal(changed[1].long(), columns)
        top, left = rows.min().item(), columns.min().item()
        expected = torch.from_numpy(mask[top : top + 64, left : left + 64]).long()
        is_mirrored = bool(columns[0, 0] > columns[0, 1])
        assert torch.equal(labels, expected.flip(1) if is_mirrored else expected)
        corners.add((top, left))
        mirrored += is_mirrored
    tops, lefts = zip(*corners, strict=True)
    assert (min(tops), max(tops)) == (0, 36), "every place of the window can be drawn"
    assert min(lefts) <= 2
    assert max(lefts) >= 54
    assert len(corners) > 150
    assert 70 < mirrored < 130


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip_never_and_always(flip):
    image, mask = positions(64, 64)
    augment = Augment(Data(crop=64, scale_min=1.0, scale_max=1.0, jitter=0.0, flip=flip))
    for seed in range(10):
        changed, labels = augment(image, mask, seed)
        step = 1 if flip == 0 else -1
        assert np.array_equal(labels, mask[:, ::step])
        assert np.array_equal(changed.permute(1, 2, 0), image[:, ::step])


@pytest.mark.parametrize(("height", "width"), [(20, 50), (50, 20), (100, 20), (1, 1), (63, 64)])
def test_small_images_are_padded_with_ignored_pixels(height, width):
    image, mask = positions(height, width)
    mask = np.zeros_like(mask)  # the class that padding must not be taken for
    augment = Augment(Data(crop=64, scale_min=1.0, scale_max=1.0, jitter=0.0))
    places = set()
    for seed in range(30):
        changed, labels = augment(image, mask, seed)
        inside = labels == 0
        assert set(labels.unique().tolist()) <= {-1, 0}
        assert inside.sum() == min(height, 64) * min(width, 64)
        assert torch.equal(changed[2] == 255, inside)
        assert not changed[:, ~inside].any()
        places.add((inside.any(1).int().argmax().item(), inside.any(0).int().argmax().item()))
    assert len(places) > (8 if max(height, width) < 63 else 1), "the image does not always lie in a corner"


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.5])
def test_padding_scales_with_the_image(scale):
    image, mask = positions(40, 24)
    augment = Augment(Data(crop=64, scale_min=scale, scale_max=scale, jitter=0.0))
    for seed in range(10):
        changed, labels = augment(image, mask * 0, seed)
        inside = labels == 0
        height, width = inside.any(1).sum().item(), inside.any(0).sum().item()
        assert height == pytest.approx(min(40 * scale, 64), abs=1)
        assert width == pytest.approx(24 * scale, abs=1)
        assert inside.sum() == height * width
        assert (changed[2][inside] > 40).all()  # a corner is blended with padding on two sides
        assert set(labels.unique().tolist()) == {-1, 0}


def test_scales_spread_over_their_range():
    rows = np.mgrid[:250, :250][0]
    image = np.repeat(rows[..., None], 3, 2).astype(np.uint8)
    augment = Augment(Data(crop=64, scale_min=0.5, scale_max=2.0, jitter=0.0))
    # Rows of the image that a crop of 64 rows spans: 128 at scale 0.5 and 32 at 2.
    scales = []
    for seed in range(200):
        changed, _ = augment(image, rows.astype(np.int32), seed)
        scales.append(63 / (int(changed[0, -1, 0]) - int(changed[0, 0, 0])))
    assert 0.48 < min(scales) < 0.53
    assert 1.9 < max(scales) < 2.15
    assert np.median(scales) == pytest.approx(1.0, rel=0.15), "as often enlarged as reduced"


@pytest.mark.parametrize("crop", [32, 96, 160])
def test_size_and_type_of_a_crop(crop):
    image, mask = positions(90, 70)
    changed, labels = Augment(Data(crop=crop))(image, mask, 0)
    assert (changed.shape, changed.dtype) == ((3, crop, crop), torch.uint8)
    assert (labels.shape, labels.dtype) == ((crop, crop), torch.int64)


def test_jitter_changes_colors_and_no_label():
    image, mask = positions(128, 128)
    still = Augment(Data(crop=64, jitter=0.0))
    moved = Augment(Data(crop=64, jitter=0.5))
    for seed in range(5):
        (before, labels), (after, same_labels) = still(image, mask, seed), moved(image, mask, seed)
        assert torch.equal(labels, same_labels)
        assert not torch.equal(before, after)


def test_seed_alone_decides_and_global_randomness_is_left_alone():
    image, mask = positions(128, 128)
    augment = Augment(Data(crop=64))
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    state, numpys, pythons = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = augment(image, mask, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpys)
    assert random.getstate() == pythons
    torch.manual_seed(2)
    second, other = augment(image, mask, 7), augment(image, mask, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], other[1])


def test_the_fixture_is_what_its_description_says(tmp_path):
    info = write_dataset(tmp_path, {"train": [2, 3], "val": [4]})
    assert (info.num_samples("train"), info.num_samples("val")) == (5, 4)
    assert read_index(tmp_path).num_rows == 9
    for row in read_index(tmp_path, "val").to_pylist():
        assert sum(row["class_pixels"]) == 64 * 62, "two columns are ignored"
