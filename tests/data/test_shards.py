"""Shards and their index keep every id and every byte, and equal samples give equal shards."""

import dataclasses
import hashlib
import io
import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
import webdataset
from conftest import write_dataset
from numbered import described, encoded, plain
from PIL import Image

from kiloseg.config import Data
from kiloseg.data.codec import IGNORE_ID, decode_image, decode_mask, encode_mask
from kiloseg.data.description import Shard
from kiloseg.data.index import class_samples, read_index, write_index
from kiloseg.data.reading.loader import TrainBatches, validation_batches
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


def test_the_fixture_is_what_its_description_says(tmp_path):
    info = write_dataset(tmp_path, {"train": [2, 3], "val": [4]})
    assert (info.num_samples("train"), info.num_samples("val")) == (5, 4)
    assert read_index(tmp_path).num_rows == 9
    for row in read_index(tmp_path, "val").to_pylist():
        assert sum(row["class_pixels"]) == 64 * 62, "two columns are ignored"
