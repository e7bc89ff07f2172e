"""What is read, and what decoding and augmenting quickly must have in common with doing it plainly."""

import io
import itertools
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import webdataset
from numbered import described, encoded, numbered_samples
from PIL import Image
from PIL.PngImagePlugin import putchunk
from torchvision.transforms.v2 import functional as transforms

from kiloseg.config import Data
from kiloseg.data.codec import decode_image, decode_mask, encode_mask
from kiloseg.data.description import read_info
from kiloseg.data.reading.batches import Memory
from kiloseg.data.reading.color import Jitter, change_colors, draw_jitter
from kiloseg.data.reading.decoding import _plain_ids, decode_ids, decode_pixels
from kiloseg.data.reading.loader import TrainBatches
from kiloseg.data.reading.reader import MAX_OPEN, Reader
from kiloseg.data.reading.transforms import _resize
from kiloseg.data.writing.shard import Sample, write_shard

pytestmark = pytest.mark.usefixtures("one_thread")

IO = Path("/proc/self/io")


# Reading


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """30 samples of about 60 KB each in shards of 12, 8 and 10."""
    directory = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    shards = []
    for number, count in enumerate((12, 8, 10)):
        samples = [
            Sample(
                key=f"s{number}-{n}",
                image=encoded(rng.integers(0, 256, (128, 160, 3), dtype=np.uint8)),
                mask=np.full((128, 160), number),
                meta={"n": n},
            )
            for n in range(count)
        ]
        shards.append(write_shard(directory / f"train-{number:06d}.tar", samples, num_classes=3)[0])
    described(directory, shards, 3)
    return directory


def bytes_read():
    """Bytes that this process has asked the system to read, from files of any kind."""
    return int(IO.read_text().split("rchar: ")[1].split()[0])


@pytest.mark.skipif(not IO.exists(), reason="the system does not count what a process reads")
@pytest.mark.parametrize("shuffle_buffer", [4, 1000])
def test_resuming_reads_what_is_left_and_no_more(large, shuffle_buffer):
    data = Data(path=str(large), crop=64, loader_workers=0, shuffle_buffer=shuffle_buffer)

    def epoch(skip):
        batches = TrainBatches(data, read_info(large), batch_size=3, seed=0)
        before = bytes_read()
        got = list(batches.epoch(2, skip=skip))
        return got, bytes_read() - before

    epoch(9)  # what is imported at first use
    whole, all_bytes = epoch(0)
    content = sum(path.stat().st_size for path in large.glob("*.tar"))
    assert 0.9 * content < all_bytes < 1.05 * content
    for skip in (2, 5, 9):
        left, left_bytes = epoch(skip)
        assert len(left) == 10 - skip
        assert all(
            torch.equal(a, b) for x, y in zip(left, whole[skip:], strict=True) for a, b in zip(x, y, strict=True)
        )
        # Besides the samples the headers: 3 of 512 bytes for a sample of 60 KB.
        assert left_bytes < all_bytes * (10 - skip) / 10 + 0.04 * content


def test_reader_gives_what_webdataset_gives(large):
    info = read_info(large)
    paths = [str(large / shard.name) for shard in info.shards("train")]
    with pytest.warns(ResourceWarning, match="unclosed file"):  # its own reader leaves them open
        expected = list(webdataset.WebDataset(paths, shardshuffle=False))
    places = [(number, n) for number, shard in enumerate(info.shards("train")) for n in range(shard.samples)]
    with Reader(large, info.shards("train")) as reader:
        for at in np.random.default_rng(0).permutation(len(places)):
            sample, whole = reader.read(*places[at]), expected[at]
            assert {name: sample[name] for name in sample if name != "__url__"} == {
                name: whole[name] for name in whole if name not in ("__url__", "__local_path__")
            }
            assert sample["__url__"] == Path(whole["__url__"]).name


def test_reader_keeps_few_files_open(tmp_path):
    shards = [
        write_shard(tmp_path / f"{n:03d}.tar", numbered_samples([n]), num_classes=300)[0] for n in range(MAX_OPEN + 3)
    ]
    with Reader(tmp_path, shards) as reader:
        for n in itertools.chain(range(MAX_OPEN + 3), range(3)):
            assert reader.read(n, 0)["__key__"] == f"sample{n:05d}"
            assert len(reader._files) <= MAX_OPEN
        files = list(reader._files.values())
    assert all(file.closed for file in files)


# Decoding


def photograph(height=123, width=161):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"quality": 20}], ids=str
)
def test_jpeg_is_decoded_as_by_pillow(mode, options):
    buffer = io.BytesIO()
    photograph().convert(mode).save(buffer, "JPEG", **options)
    decoded = decode_pixels(buffer.getvalue())
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, decode_image(buffer.getvalue()))


def test_jpeg_that_only_pillow_takes():
    buffer = io.BytesIO()
    photograph().save(buffer, "JPEG")
    content = buffer.getvalue()
    odd = content[:-2] + b"\x00" * 20 + content[-2:]  # as some cameras pad the end of the pixels
    assert np.array_equal(decode_pixels(odd), decode_image(odd))
    with pytest.raises(OSError, match="truncated"):
        decode_pixels(content[: len(content) // 2])


def test_jpeg_of_billions_of_pixels_is_refused(monkeypatch):
    buffer = io.BytesIO()
    photograph().save(buffer, "JPEG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 123 * 161 // 3)
    with pytest.raises(ValueError, match="exceeds limit"):
        decode_pixels(buffer.getvalue())


def test_mask_png_is_like_any_other():
    mask = np.random.default_rng(0).integers(0, 65536, (37, 53))
    content = encode_mask(mask)
    with Image.open(io.BytesIO(content)) as image:
        image.verify()  # checks the sums of all chunks
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "I;16", (53, 37))
        assert np.array_equal(np.asarray(image), mask)
    assert np.array_equal(decode_mask(content), mask)
    assert decode_mask(encode_mask(mask[::2, ::-1])).tolist() == mask[::2, ::-1].tolist(), "of any strides"


def outcome(decode, content):
    try:
        ids = decode(content)
    except (OSError, ValueError, SyntaxError) as error:
        return type(error), str(error)
    assert ids.dtype == np.uint16
    return ids.tolist()


def test_mask_is_decoded_as_by_pillow(monkeypatch):
    rng = np.random.default_rng(0)
    for mask in (
        rng.integers(0, 65536, (37, 53)),
        np.kron(rng.integers(0, 65536, (4, 3)), np.ones((9, 11), int)),
        np.full((1, 1), 65535),
    ):
        content = encode_mask(mask)
        assert _plain_ids(content) is not None, "not by Pillow"
        assert np.array_equal(decode_ids(content), mask)
        ids = decode_ids(content)
        assert ids.dtype == np.uint16 and ids.dtype.isnative and ids.flags.c_contiguous

        buffer = io.BytesIO()
        Image.fromarray(mask.astype(np.uint16)).save(buffer, "PNG")
        assert np.array_equal(decode_ids(buffer.getvalue()), mask)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 53 // 3)
    with pytest.raises(ValueError, match="exceeds limit"):
        decode_ids(encode_mask(np.zeros((37, 53), int)))


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_damaged_mask_is_pillows_to_judge():
    content = encode_mask(np.arange(24).reshape(4, 6))
    for at in range(len(content)):
        damaged = content[:at] + bytes([content[at] ^ 0x11]) + content[at + 1 :]
        assert outcome(decode_ids, damaged) == outcome(decode_mask, damaged), at
        assert outcome(decode_ids, content[:at]) == outcome(decode_mask, content[:at]), at
    assert outcome(decode_ids, content + b"more") == outcome(decode_mask, content + b"more")


def png(rows, height, width, idat=None):
    """A 16-bit PNG of rows that each begin with the number of their filter, with sound sums."""
    out = io.BytesIO()
    out.write(b"\x89PNG\r\n\x1a\n")
    putchunk(out, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    putchunk(out, b"IDAT", zlib.compress(rows) if idat is None else idat)
    putchunk(out, b"IEND")
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        png(b"\0\0\1\0\2" + b"\2\0\1\0\1", 2, 2),  # the second row is a difference to the first
        png(b"\1\0\1\0\1" + b"\1\1\0\0\7", 2, 2),
        png(b"\0\0\1\0\2" * 3, 2, 2),  # more than the header promises
        png(b"\0\0\1\0\2", 2, 2),  # less
        png(b"", 2, 2, idat=zlib.compress(b"\0\0\1\0\2" * 2)[:-1]),
        png(b"", 2, 2, idat=b"no stream"),
    ],
    ids=["filter up", "filter sub", "more rows", "fewer rows", "no end", "nonsense"],
)
def test_mask_that_only_pillow_takes(content):
    assert outcome(decode_ids, content) == outcome(decode_mask, content)


# Augmenting


@pytest.mark.parametrize("size", [(512, 512), (100, 300), (61, 47), (123, 161), (1, 1)])
def test_resize_is_torchs_bit_for_bit(size):
    image = np.array(photograph())
    for part in (image, image[3:100, 5:90]):
        expected = F.interpolate(
            torch.from_numpy(part.copy()).permute(2, 0, 1)[None], size, mode="bilinear", antialias=True
        )
        assert np.array_equal(_resize(part, size), expected[0].permute(1, 2, 0))


CHANGES = {
    "brightness": transforms.adjust_brightness,
    "contrast": transforms.adjust_contrast,
    "saturation": transforms.adjust_saturation,
}


@pytest.mark.parametrize("order", list(itertools.permutations(CHANGES)), ids="-".join)
@pytest.mark.parametrize("factors", [(1.3, 0.7, 1.4), (0.8, 1.3, 0.6), (1.0, 1.0, 1.0), (1.2, 1.0, 0.0)], ids=str)
def test_colors_change_as_in_torchvision(order, factors):
    # In floats torchvision rounds nothing, and these values stay in range, so that only the arithmetic is compared.
    image = (np.asarray(photograph()) * 0.3 + 90).astype(np.uint8)
    jitter = Jitter(*factors, order)
    expected = torch.from_numpy(image).permute(2, 0, 1).double() / 255
    for change in order:
        expected = CHANGES[change](expected, getattr(jitter, change))
    assert 0 < expected.min() < expected.max() < 1
    difference = torch.from_numpy(change_colors(image, jitter)).permute(2, 0, 1) - 255 * expected
    assert difference.abs().max() < 0.55, "half of one for rounding, and the weights of luma add up to 0.9999"


def test_colors_out_of_range_are_clamped():
    image = np.array([[[0, 0, 0], [200, 100, 0], [255, 255, 255]]], dtype=np.uint8)
    assert change_colors(image, Jitter(2.0, 1.0, 1.0)).tolist() == [[[0, 0, 0], [255, 200, 0], [255, 255, 255]]]
    assert change_colors(image, Jitter(1.0, 1.0, 1.0)).tolist() == image.tolist()
    assert change_colors(image, Jitter(0.0, 1.0, 1.0)).max() == 0


def test_factors_are_drawn_over_their_range():
    rng = random.Random(0)
    drawn = [draw_jitter(0.4, rng) for _ in range(600)]
    for name in CHANGES:
        factors = [getattr(jitter, name) for jitter in drawn]
        assert 0.6 <= min(factors) < 0.62
        assert 1.38 < max(factors) <= 1.4
        assert np.mean(factors) == pytest.approx(1.0, abs=0.04)
    assert {jitter.order for jitter in drawn} == set(itertools.permutations(CHANGES))


# Batches


def test_batches_that_are_kept_do_not_change(squares):
    """The memory that loader processes write to is used again, what a caller has got is not."""
    data = Data(path=str(squares), crop=64, loader_workers=2)
    batches = TrainBatches(data, read_info(squares), batch_size=2, seed=0)
    kept, copies = [], []
    for batch in itertools.islice(batches.from_step(0), 30):
        kept.append(batch)
        copies.append((batch.images.clone(), batch.labels.clone()))
    assert len({images.numpy().tobytes() for images, _ in copies}) == 30
    for (images, labels), (images_then, labels_then) in zip(kept, copies, strict=True):
        assert torch.equal(images, images_then)
        assert torch.equal(labels, labels_then)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_memory_is_used_again_when_nothing_is_left_of_it():
    memory = Memory(2, 32)
    first = memory.batch()
    assert (first.images.shape, first.labels.shape) == ((2, 3, 32, 32), (2, 32, 32))
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    places = first.images.data_ptr(), first.labels.data_ptr()
    view = first.labels[1, 3:5]
    del first
    second = memory.batch()
    assert second.images.data_ptr() == places[0]
    assert second.labels.data_ptr() != places[1], "a view of it is left"
    del view
    assert memory.batch().labels.data_ptr() == places[1]


def test_loader_processes_and_none_give_the_same_crops(squares):
    def crops(loader_workers):
        data = Data(path=str(squares), crop=64, loader_workers=loader_workers)
        batches = list(TrainBatches(data, read_info(squares), batch_size=6, seed=0).epoch(0))
        return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])

    # One process reads the same range as none.
    for ours, theirs in zip(crops(0), crops(1), strict=True):
        assert torch.equal(ours, theirs)


def test_epoch_that_is_left_half_way_does_not_disturb_the_next(squares):
    data = Data(path=str(squares), crop=64, loader_workers=2)
    batches = TrainBatches(data, read_info(squares), batch_size=3, seed=0)
    expected = list(batches.epoch(1))
    for taken in (1, 3):
        started = batches.epoch(0)
        for _ in range(taken):
            next(started)
        again = list(batches.epoch(1))
        assert all(torch.equal(a.images, b.images) for a, b in zip(again, expected, strict=True))


def test_masks_of_any_memory_order_are_written_alike():
    mask = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    columns = np.asfortranarray(mask)
    assert encode_mask(columns) == encode_mask(mask)
    assert np.array_equal(decode_mask(encode_mask(columns[:, ::2])), mask[:, ::2])
