"""A bad sample in a shard is named with its fault, and is left out where a run allows that."""

import io
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_data import described, listed, mask_bytes, parts, picture, read_all, refused, train_all, write_tar
from PIL import Image

from kiloseg.config import Data
from kiloseg.data.description import read_info
from kiloseg.data.reading.bad_samples import texts_of
from kiloseg.data.reading.loader import TrainBatches


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
