"""Data sets of samples that can be told apart by their pixels, and what tests read off their batches."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kiloseg.config import Data
from kiloseg.data.description import DatasetInfo, Shard, read_info, write_info
from kiloseg.data.writing.shard import Sample, write_shard

SHARDS = (13, 9, 20)
TOTAL = sum(SHARDS)


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


def write_numbered(directory: Path) -> Path:
    """42 samples in three shards, each with an identity that can be read off its pixels."""
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


def same(batches, others):
    """Whether two sequences of batches hold equal images and labels."""
    batches, others = list(batches), list(others)
    return len(batches) == len(others) and all(
        torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        for one, other in zip(batches, others, strict=True)
    )


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
