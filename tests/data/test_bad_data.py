"""What is wrong with a data set is said with the file or sample, what was expected, and the remedy."""

import dataclasses
import hashlib
import io
import json
import pickle
import re
import struct
import tarfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from kiloseg.config import Data
from kiloseg.data.classes import count_classes
from kiloseg.data.codec import IGNORE_ID, encode_mask
from kiloseg.data.description import AGAIN, DatasetInfo, Shard, check_shards, read_info, write_info
from kiloseg.data.index import read_index
from kiloseg.data.reading.bad_samples import texts_of
from kiloseg.data.reading.loader import TrainBatches, validation_batches
from kiloseg.data.reading.reader import Reader
from kiloseg.data.writing.shard import Sample, write_shard
from kiloseg.storage.errors import DataError


def picture(kind="PNG", mode="RGB", size=(32, 32)):
    """Bytes of an image of (height, width), neither plain nor small."""
    height, width = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def mask_bytes(value=1, size=(32, 32)):
    return encode_mask(np.full(size, value))


def write_tar(path, members):
    """A shard by hand: whatever members are given, in their order."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def good_members(keys):
    return [(f"{key}.{suffix}", content) for key in keys for suffix, content in parts(key).items()]


def parts(key):
    return {"png": picture(), "mask.png": mask_bytes(), "json": json.dumps({"key": key}).encode()}


def listed(path, samples):
    """The record of a shard file as it is now."""
    content = path.read_bytes()
    return Shard(name=path.name, samples=samples, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def described(directory, shards, **changes):
    fields = {
        "name": "bad",
        "classes": ["background", "one", "two"],
        "background": 0,
        "license": "none",
        "command": "python make.py --out here",
        "recipe": {},
        "splits": {"train": shards, "val": shards},
    }
    info = DatasetInfo(**fields | changes)
    write_info(directory, info)
    return info


@pytest.fixture
def good(tmp_path):
    """Four samples in one shard, without a fault."""
    path = write_tar(tmp_path / "part-000000.tar", good_members("abcd"))
    described(tmp_path, [listed(path, 4)])
    return tmp_path


def refused(action, *fragments):
    """The message of the DataError that `action` ends in, which holds all `fragments`."""
    with pytest.raises(DataError) as caught:
        action()
    for fragment in fragments:
        assert fragment in str(caught.value)
    return str(caught.value)


def read_all(directory, **changes):
    data = Data(path=str(directory), crop=32, **{"loader_workers": 0} | changes)
    return list(validation_batches(data, read_info(directory)))


def train_all(directory, **changes):
    data = Data(path=str(directory), crop=32, **{"loader_workers": 0} | changes)
    return list(TrainBatches(data, read_info(directory), batch_size=2, seed=0).epoch(0))


def test_without_a_fault_it_reads(good):
    assert [len(batch.labels) for batch in read_all(good)] == [4]
    assert [len(batch.labels) for batch in train_all(good)] == [2, 2]


# dataset.json


def test_missing_description(tmp_path):
    refused(
        lambda: read_info(tmp_path / "nowhere"),
        f"{tmp_path}/nowhere/dataset.json does not exist",
        "expected a data set folder",
        "python datasets/glyphs.py --out DIR",
    )


def rewritten(directory, change):
    path = directory / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_other_format(good):
    rewritten(good, lambda content: content.update(format="kiloseg-shards-0"))
    refused(
        lambda: read_info(good),
        f"{good}/dataset.json: format is 'kiloseg-shards-0', expected 'kiloseg-shards-1'",
        "build the data set again",
    )


@pytest.mark.parametrize("content", ["", "{", '{"format": "kiloseg-shards-1", "na', "[1, 2]", "null", "3", '"text"'])
def test_damaged_description(good, content):
    (good / "dataset.json").write_text(content)
    refused(lambda: read_info(good), f"{good}/dataset.json is damaged (", "build the data set again")


def test_description_that_is_no_text(good):
    (good / "dataset.json").write_bytes(b"\x80\x81\xff" * 100)
    refused(lambda: read_info(good), f"{good}/dataset.json is damaged (", "build the data set again")


@pytest.mark.parametrize(
    "field", ["format", "name", "num_classes", "ignore_id", "background", "licence", "command", "recipe", "splits"]
)
def test_description_without_a_field_names_it(good, field):
    rewritten(good, lambda content: content.pop(field))
    refused(lambda: read_info(good), f"{good}/dataset.json is damaged (KeyError: '{field}')")


DIGEST = "0" * 64


@pytest.mark.parametrize(
    "change",
    [
        {"splits": []},
        {"splits": {"train": 5}},
        {"splits": {"train": [5]}},
        {"splits": {"train": [{"name": "a.tar"}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": 1, "bytes": 1, "sha256": DIGEST, "more": 1}]}},
        {"splits": {"train": [{"name": 5, "samples": 1, "bytes": 1, "sha256": DIGEST}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": "1", "bytes": 1, "sha256": DIGEST}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": -1, "bytes": 1, "sha256": DIGEST}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": 1, "bytes": 1, "sha256": "../../" + DIGEST[6:]}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": 1, "bytes": 1, "sha256": 5}]}},
        {"classes": 3},
        {"classes": "abc"},
        {"background": "0"},
        {"background": 0.5},
    ],
    ids=str,
)
def test_description_with_a_field_of_another_kind(good, change):
    rewritten(good, lambda content: content.update(change))
    refused(lambda: read_info(good), f"{good}/dataset.json")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"num_classes": 4}, "num_classes 4 with 3 class names"),
        ({"ignore_id": 255}, "ignore_id 255: expected as many as names, 2 to 65535, and ignore_id 65535"),
        ({"classes": ["one"], "num_classes": 1}, "num_classes 1 with 1 class names"),
        ({"background": 3}, "background is 3, expected a class id or null"),
        ({"background": -1}, "background is -1, expected a class id or null"),
    ],
)
def test_description_that_contradicts_itself(good, change, fragment):
    rewritten(good, lambda content: content.update(change))
    refused(lambda: read_info(good), f"{good}/dataset.json: ", fragment)


@pytest.mark.parametrize("name", ["sub/part.tar", "../part.tar", "/etc/passwd", "sub\\part.tar", "..", ".hidden.tar"])
def test_shard_outside_of_the_folder(good, name):
    rewritten(good, lambda content: content["splits"]["val"][0].update(name=name))
    refused(
        lambda: read_info(good),
        f"{good}/dataset.json: shard name {name!r} must be a plain file name beside dataset.json",
    )


def test_name_of_a_shard_is_never_run_as_a_command(good, monkeypatch):
    monkeypatch.chdir(good)
    name = "pipe:touch created"
    rewritten(good, lambda content: content["splits"]["val"][0].update(name=name))
    refused(lambda: read_all(good), f"{good}/{name} is missing")
    info = read_info(good)
    with Reader(good, info.shards("val")) as reader:
        refused(lambda: reader.read(0, 0), f"{good}/{name} is missing")
    (good / "part-000000.tar").rename(good / name)
    assert len(read_all(good)[0].labels) == 4, "it is a file like any other"
    assert not (good / "created").exists()


# index.parquet


def test_missing_index(good):
    refused(lambda: read_index(good), f"{good}/index.parquet does not exist; build the data set again")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100])
def test_damaged_index(good, content):
    (good / "index.parquet").write_bytes(content)
    refused(lambda: read_index(good, "train"), f"{good}/index.parquet is damaged (", "build the data set again")


@pytest.mark.parametrize("columns", [{"key": ["a"], "class_ids": ["none"]}, {"key": ["a"], "split": ["train"]}])
def test_index_of_other_columns(good, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), good / "index.parquet")
    refused(lambda: read_index(good), f"{good}/index.parquet is damaged (", "build the data set again")


# Shards


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_shard(good, split):
    (good / "part-000000.tar").unlink()
    refused(
        lambda: read_all(good) if split == "val" else train_all(good),
        f"{good}/part-000000.tar is missing, though dataset.json lists it",
        f"restore it or rebuild: python make.py --out {good} --rebuild",
    )


def test_shard_that_vanishes_after_the_check(good):
    batches = validation_batches(Data(path=str(good), loader_workers=0), read_info(good))
    (good / "part-000000.tar").unlink()
    refused(lambda: list(batches), f"{good}/part-000000.tar is missing; restore it or build the data set again")


@pytest.mark.parametrize("split", ["train", "val"])
def test_shard_cut_short_is_found_before_anything_is_read(good, split):
    path = good / "part-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    info = read_info(good)
    data = Data(path=str(good), loader_workers=0)
    refused(
        lambda: validation_batches(data, info) if split == "val" else TrainBatches(data, info, batch_size=2, seed=0),
        f"{path} has {len(whole) - 1} bytes, expected {len(whole)}; restore it or rebuild: python make.py --out {good} --rebuild",
    )
    path.write_bytes(whole)
    check_shards(good, info, split)


def members_of(path):
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


@pytest.mark.parametrize("member", ["c.png", "c.mask.png"])
def test_shard_cut_in_the_middle_of_a_member(good, member):
    path = good / "part-000000.tar"
    cut = members_of(path)[member]
    path.write_bytes(path.read_bytes()[: cut.offset_data + cut.size // 2])
    described(good, [listed(path, 4)])
    message = refused(lambda: read_all(good), f"{path} cannot be read after ", f"restore it or {AGAIN}")
    assert int(re.search(r"after (\d) samples", message)[1]) in (1, 2)


def test_shard_of_the_right_size_with_other_content(good):
    path = good / "part-000000.tar"
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
    refused(
        lambda: read_all(good),
        f"{path} cannot be read after 0 samples (",
        f"restore it or {AGAIN}",
    )


def test_shard_of_zeros_is_an_empty_one(good):
    path = good / "part-000000.tar"
    path.write_bytes(bytes(path.stat().st_size))
    refused(
        lambda: read_all(good),
        f"{path} ends after 0 samples, dataset.json lists 4; restore it or {AGAIN}",
    )


def test_shard_that_ends_between_two_samples(good):
    path = good / "part-000000.tar"
    path.write_bytes(path.read_bytes()[: members_of(path)["d.png"].offset])
    described(good, [listed(path, 4)])
    refused(
        lambda: read_all(good),
        f"{path} ends after 3 samples, dataset.json lists 4; restore it or {AGAIN}",
    )


def test_fault_in_a_loader_process_arrives_with_its_message(good):
    path = good / "part-000000.tar"
    path.write_bytes(path.read_bytes()[: members_of(path)["d.png"].offset])
    described(good, [listed(path, 4)])
    data = Data(path=str(good), crop=32, loader_workers=2)
    info = read_info(good)
    training, validation = TrainBatches(data, info, batch_size=2, seed=0), validation_batches(data, info)
    for batches in (training.epoch(0), iter(validation)):
        refused(lambda batches=batches: list(batches), f"{path} ends after 3 samples, dataset.json lists 4; restore it")
    # Left to the garbage collector, torch would wait 5 s for each process.
    training._loader._iterator._shutdown_workers()


# Samples


def with_sample_b(directory, changes):
    """Samples a, b and c, where members of b are replaced, or left out for None."""
    members = []
    for key in "abc":
        chosen = parts(key) | (changes if key == "b" else {})
        members += [(f"{key}.{suffix}", content) for suffix, content in chosen.items() if content is not None]
    described(directory, [listed(write_tar(directory / "part-000000.tar", members), 3)])


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height, depth, color):
    """A PNG whose pixels are missing, with a correct header."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) * 2


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


def tiff_mask(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32), value, dtype=np.int32)).save(buffer, "TIFF")
    return buffer.getvalue()


SAMPLE_B = "part-000000.tar: sample b"

FAULTS = {
    "no mask": ({"mask.png": None}, f"{SAMPLE_B} has no mask (.mask.png); it has: png, json"),
    "no image": ({"png": None}, f"{SAMPLE_B} has no image (.jpg or .png); it has: mask.png, json"),
    "image of another suffix": (
        {"png": None, "jpeg": picture("JPEG")},
        f"{SAMPLE_B} has no image (.jpg or .png); it has: mask.png, json, jpeg",
    ),
    "mask of another size": (
        {"mask.png": mask_bytes(size=(32, 31))},
        f"{SAMPLE_B}: mask is (32, 31), its image (32, 32) (height, width); they must be equal",
    ),
    "turned mask": (
        {"png": picture(size=(32, 64)), "mask.png": mask_bytes(size=(64, 32))},
        f"{SAMPLE_B}: mask is (64, 32), its image (32, 64) (height, width); they must be equal",
    ),
    "id outside": (
        {"mask.png": mask_bytes(3)},
        f"{SAMPLE_B}: mask has class id 3, expected 0 to 2, or 65535 for ignore",
    ),
    "id far outside": (
        {"mask.png": mask_bytes(65534)},
        f"{SAMPLE_B}: mask has class id 65534, expected 0 to 2, or 65535 for ignore",
    ),
    "8-bit mask": (
        {"mask.png": picture(mode="L")},
        f"{SAMPLE_B} cannot be decoded: mask is a PNG of mode L: expected a 16-bit one-channel PNG, since 8 bits lose "
        "class ids above 255; write masks with kiloseg.data.codec.encode_mask",
    ),
    "palette mask": (
        {"mask.png": picture(mode="P")},
        f"{SAMPLE_B} cannot be decoded: mask is a PNG of mode P: expected",
    ),
    "bilevel mask": (
        {"mask.png": picture(mode="1")},
        f"{SAMPLE_B} cannot be decoded: mask is a PNG of mode 1: expected",
    ),
    "color mask": ({"mask.png": picture()}, f"{SAMPLE_B} cannot be decoded: mask is a PNG of mode RGB: expected"),
    "broken chunk": ({"png": flipped(picture(), 20)}, f"{SAMPLE_B} cannot be decoded: "),
    "broken pixels": ({"png": flipped(picture(), 500)}, f"{SAMPLE_B} cannot be decoded: "),
    "broken mask": ({"mask.png": flipped(mask_bytes(), 45)}, f"{SAMPLE_B} cannot be decoded: "),
    "cut PNG": ({"png": picture()[:600]}, f"{SAMPLE_B} cannot be decoded: "),
    "cut JPEG": ({"png": None, "jpg": picture("JPEG")[:700]}, f"{SAMPLE_B} cannot be decoded: "),
    "pixels missing": ({"png": png_header(32, 32, 8, 2)}, f"{SAMPLE_B} cannot be decoded: "),
    "no image at all": ({"png": b"<html>404</html>"}, f"{SAMPLE_B} cannot be decoded: "),
    "image of another kind": ({"png": picture("GIF", "P")}, f"{SAMPLE_B} cannot be decoded: "),
}


@pytest.mark.parametrize(("changes", "message"), FAULTS.values(), ids=FAULTS)
def test_fault_of_a_sample_names_it(tmp_path, changes, message):
    with_sample_b(tmp_path, changes)
    refused(lambda: read_all(tmp_path), message)
    data = Data(path=str(tmp_path), crop=32, loader_workers=0)
    batches = TrainBatches(data, read_info(tmp_path), batch_size=3, seed=0)
    refused(lambda: list(batches.epoch(0)), message)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_empty_image_is_told_from_a_missing_one(tmp_path, suffix):
    with_sample_b(tmp_path, {"png": None, suffix: b""})
    refused(lambda: read_all(tmp_path), f"{SAMPLE_B} cannot be decoded: ")


@pytest.mark.parametrize("value", [1, 70_000])
def test_mask_of_another_file_format(tmp_path, value):
    with_sample_b(tmp_path, {"mask.png": tiff_mask(value)})
    refused(lambda: read_all(tmp_path), f"{SAMPLE_B} cannot be decoded: ", "16-bit one-channel PNG")


def test_image_of_16_bits_would_turn_white(tmp_path):
    pixels = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    with_sample_b(tmp_path, {"png": buffer.getvalue()})
    refused(lambda: read_all(tmp_path), f"{SAMPLE_B} cannot be decoded: ")


@pytest.mark.parametrize("member", ["png", "mask.png"])
def test_header_that_promises_billions_of_pixels(tmp_path, member):
    with_sample_b(tmp_path, {member: png_header(60_000, 60_000, 16, 0)})
    refused(lambda: read_all(tmp_path), f"{SAMPLE_B} cannot be decoded: ")


class CreatesFile:
    """Loading a pickle of this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "json", "cls", "txt"])
def test_nothing_in_a_shard_is_unpickled(tmp_path, suffix):
    created = tmp_path / "created"
    harmful = pickle.dumps(CreatesFile(created))
    pickle.loads(harmful)
    assert created.exists(), "the pickle does what it is meant to do"
    created.unlink()
    with_sample_b(tmp_path, {suffix: harmful})
    assert len(read_all(tmp_path)[0].labels) == 3
    assert sum(len(batch.labels) for batch in train_all(tmp_path)) == 2
    with_sample_b(tmp_path, {"png": harmful, "mask.png": harmful})
    refused(lambda: read_all(tmp_path), f"{SAMPLE_B} cannot be decoded: ")
    assert not created.exists()


# What a run asks for


def test_missing_split(good):
    info = read_info(good)
    only_train = dataclasses.replace(info, splits={"train": info.splits["train"]})
    write_info(good, only_train)
    refused(lambda: read_all(good), "data set bad has no split 'val'; it has: train")
    write_info(good, dataclasses.replace(info, splits={}))
    refused(lambda: train_all(good), "data set bad has no split 'train'; it has: none")


def test_fewer_samples_than_a_batch(good):
    data = Data(path=str(good), crop=32, loader_workers=0)
    refused(
        lambda: TrainBatches(data, read_info(good), batch_size=5, seed=0),
        f"{good} has 4 training samples, fewer than one batch of 5; lower trainer.batch_size",
    )
    assert TrainBatches(data, read_info(good), batch_size=4, seed=0).steps_per_epoch == 1


@pytest.mark.parametrize(("batch_size", "world"), [(4, 3), (3, 2), (1, 2)])
def test_batch_that_workers_cannot_share(good, batch_size, world):
    data = Data(path=str(good), crop=32, loader_workers=0)
    message = f"trainer.batch_size = {batch_size} cannot be split over {world} workers; use a multiple of {world}"
    with pytest.raises(ValueError, match=re.escape(message)):
        TrainBatches(data, read_info(good), batch_size=batch_size, seed=0, rank=0, world=world)


def test_more_classes_than_the_data_set_has(good):
    info = read_info(good)
    message = "data.num_classes = 4, but data set bad has only 3 classes"
    # A setting that cannot work, and no damaged data: its trial is not tried again.
    with pytest.raises(ValueError, match=re.escape(message)):
        count_classes(Data(num_classes=4), info)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_all(good, num_classes=4)
    with pytest.raises(ValueError, match=re.escape(message)):
        train_all(good, num_classes=4)
    assert count_classes(Data(num_classes=3), info) == 3


# What is never written

OKAY = Sample(key="okay", image=np.zeros((4, 6, 3), dtype=np.uint8), mask=np.zeros((4, 6), dtype=np.int64))


def sample(**changes):
    return dataclasses.replace(OKAY, **{"key": "bad", **changes})


REFUSED = {
    "repeated key": (sample(key="okay"), "s.tar: key 'okay' must be unique in its shard"),
    "dot in key": (sample(key="v1.2"), "s.tar: key 'v1.2' must be unique in its shard, without dots and slashes"),
    "slash in key": (sample(key="a/b"), "s.tar: key 'a/b' must be unique in its shard, without dots and slashes"),
    "key upwards": (sample(key="../b"), "s.tar: key '../b' must be"),
    "no key": (sample(key=""), "s.tar: key '' must be"),
    "long key": (sample(key="\N{GREEK SMALL LETTER PI}" * 46), "' has 92 bytes, expected at most 90"),
    "smaller mask": (
        sample(mask=np.zeros((4, 5), dtype=int)),
        "s.tar: sample bad: mask is (4, 5), its image (4, 6) (height, width)",
    ),
    "turned mask": (
        sample(mask=np.zeros((6, 4), dtype=int)),
        "s.tar: sample bad: mask is (6, 4), its image (4, 6) (height, width)",
    ),
    "mask with a channel": (
        sample(mask=np.zeros((4, 6, 1), dtype=int)),
        "s.tar: sample bad: mask is (4, 6, 1), its image (4, 6)",
    ),
    "mask of other size than stored image": (
        sample(image=picture("JPEG", size=(8, 9)), mask=np.zeros((9, 8), dtype=int)),
        "s.tar: sample bad: mask is (9, 8), its image (8, 9) (height, width)",
    ),
    "id of no class": (
        sample(mask=np.full((4, 6), 3)),
        "s.tar: sample bad: mask has class id 3, expected 0 to 2 or 65535 for ignore",
    ),
    "id above 16 bits": (sample(mask=np.full((4, 6), 65536)), "s.tar: sample bad: mask has class id 65536, expected 0"),
    "one pixel of no class": (
        sample(mask=np.array([[0] * 6] * 3 + [[0, 1, 2, 65534, 65535, 0]])),
        "s.tar: sample bad: mask has class id 65534, expected 0 to 2 or 65535 for ignore",
    ),
}

REFUSED_UNNAMED = {
    "id below 0": (
        sample(mask=np.full((4, 6), -1)),
        "s.tar: sample bad: mask has class id -1, expected 0 to 2 or 65535 for ignore",
    ),
    "mask of floats": (sample(mask=np.zeros((4, 6))), "s.tar: sample bad: "),
    "image of floats": (sample(image=np.zeros((4, 6, 3))), "s.tar: sample bad: "),
    "image that is none": (sample(image=b"junk"), "s.tar: sample bad: "),
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(pytest.param(*case, id=name) for name, case in REFUSED.items()),
        *(pytest.param(*case, id=name) for name, case in REFUSED_UNNAMED.items()),
    ],
)
def test_sample_that_cannot_be_stored_is_refused(tmp_path, wrong, message):
    path = tmp_path / "s.tar"
    refused(lambda: write_shard(path, [OKAY, wrong], num_classes=3), message)
    assert not path.exists()
    write_shard(path, [OKAY], num_classes=3)
    before = path.read_bytes()
    refused(lambda: write_shard(path, [OKAY, wrong], num_classes=3), message)
    assert path.read_bytes() == before, "the shard of before is left alone"


def test_failure_of_a_generator_leaves_no_shard(tmp_path):
    def samples():
        yield OKAY
        raise RuntimeError("the generator broke")

    with pytest.raises(RuntimeError, match="the generator broke"):
        write_shard(tmp_path / "s.tar", samples(), num_classes=3)
    assert not (tmp_path / "s.tar").exists()


@pytest.mark.parametrize(
    "mask", [np.full((4, 6), -1), np.full((4, 6), 65536), np.zeros((4, 6)), np.zeros(4, dtype=int)]
)
def test_mask_that_16_bits_cannot_hold(mask):
    with pytest.raises(ValueError, match=r"expected 0 to 65534, or 65535 for ignore|expected integers of shape"):
        encode_mask(mask)


def test_ignored_pixels_are_no_class(tmp_path):
    ignored = sample(mask=np.full((4, 6), IGNORE_ID))
    _, (row,) = write_shard(tmp_path / "s.tar", [ignored], num_classes=3)
    assert row["class_ids"] == []


# Leaving bad samples out


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_bad_samples_are_left_out_up_to_a_number(tmp_path, loader_workers):
    """Each counts once, whatever the epochs; the others are what they were."""
    sound, bad = tmp_path / "sound", tmp_path / "bad"
    for directory in (sound, bad):
        directory.mkdir()
        with_sample_b(directory, {"png": picture()[:600]} if directory == bad else {})
    batches = []
    for directory in (sound, bad):
        data = Data(path=str(directory), crop=32, loader_workers=loader_workers, max_bad_samples=1)
        training = TrainBatches(data, read_info(directory), batch_size=3, seed=0)
        # A warning of a loader process is printed there.
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            batches.append([batch for epoch in (0, 1) for batch in training.epoch(epoch)])
        texts = texts_of(training.bad_samples.state(1, torch.device("cpu")))
        if directory == bad:
            (text,) = texts
            assert f"{SAMPLE_B} cannot be decoded" in text
        else:
            assert texts == []
        if directory == bad and not loader_workers:
            (warning,) = warned
            assert f"{SAMPLE_B} cannot be decoded" in str(warning.message)
            assert "it is left out (1 of 1 allowed)" in str(warning.message)
        if loader_workers:
            training._loader._iterator._shutdown_workers()
    for sound_batch, bad_batch in zip(*batches, strict=True):
        left_out = (bad_batch.labels == -1).all(dim=(1, 2))
        assert left_out.sum() == 1
        assert torch.equal(bad_batch.images[~left_out], sound_batch.images[~left_out])
        assert torch.equal(bad_batch.labels[~left_out], sound_batch.labels[~left_out])
    message = refused(lambda: read_all(bad, max_bad_samples=9), f"{SAMPLE_B} cannot be decoded")
    assert "left out" not in message, "validation needs all samples"


def test_one_bad_sample_more_than_allowed_ends_the_run(tmp_path):
    with_sample_b(tmp_path, {"png": picture()[:600]})
    data = Data(path=str(tmp_path), crop=32, loader_workers=0)
    refused(
        lambda: list(TrainBatches(data, read_info(tmp_path), batch_size=3, seed=0).epoch(0)),
        f"{SAMPLE_B} cannot be decoded",
        "data.max_bad_samples = 0 allows no more",
    )
