"""Makes the data set of benchmarks/data.py: 640 x 480 crops of photographs with masks of 1,284 classes."""

from __future__ import annotations

import functools
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.cbook
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo
from kiloseg.data.reading.reader import Reader
from kiloseg.data.writing.build import ShardTask, build, plan_shards
from kiloseg.data.writing.output import Output
from kiloseg.data.writing.shard import Sample

HEIGHT, WIDTH = 480, 640
NUM_CLASSES, NUM_THINGS = 1284, 1000


def make_samples(task: ShardTask, quality: int) -> Iterator[Sample]:
    """Yields crops of photographs, each scaled down by 1 to 1.25 so that no detail is made up."""
    portrait = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    photographs = [*load_sample_images().images, np.asarray(Image.open(str(portrait)))]
    # Mirrored at their borders they are large enough to cut from anywhere.
    wide = [np.pad(image, ((0, len(image)), (0, image.shape[1]), (0, 0)), "symmetric") for image in photographs]
    for number in range(task.start, task.stop):
        rng = np.random.default_rng(number)
        image = wide[number % len(wide)]
        factor = rng.uniform(1, 1.25)
        height, width = int(HEIGHT * factor), int(WIDTH * factor)
        top, left = rng.integers(len(image) - height + 1), rng.integers(image.shape[1] - width + 1)
        crop = Image.fromarray(image[top : top + height, left : left + width])
        buffer = io.BytesIO()
        crop.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
        yield Sample(key=f"{number:06d}", image=buffer.getvalue(), mask=make_mask(rng))


def make_mask(rng: np.random.Generator) -> np.ndarray:
    """Returns a mask with 4 regions with smooth borders, 11 objects with wavy outlines, and some ignored pixels."""
    noise = rng.normal(size=(4, 6, 8)).astype(np.float32)
    smooth = [Image.fromarray(field).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for field in noise]
    fields = np.stack([np.asarray(field) for field in smooth])
    mask = rng.integers(NUM_THINGS, NUM_CLASSES, 4)[fields.argmax(0)]
    mask[fields.max(0) < 0] = IGNORE_ID
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for _ in range(11):
        y, x = rng.integers(HEIGHT), rng.integers(WIDTH)
        half_height, half_width = rng.uniform(10, 90, 2)
        angle = np.arctan2(rows - y, columns - x)
        waves, turn = rng.integers(3, 9), rng.uniform(0, 6)
        radius = 1 + 0.15 * np.sin(waves * angle + turn) + 0.05 * np.sin(5 * waves * angle)
        inside = ((rows - y) / half_height) ** 2 + ((columns - x) / half_width) ** 2 < radius**2
        mask[inside] = rng.integers(NUM_THINGS)
    return mask


def make_data(images: int, quality: int, workers: int, into: Path) -> tuple[Path, Path, DatasetInfo]:
    """Writes shards, and beside them a folder with the same files loose; returns both folders and the description."""
    recipe = {"images": images, "quality": quality, "workers": workers}
    folder, loose = into / f"quality-{quality}", into / f"loose-{quality}"
    # A shard for each process and more: webdataset deals out whole shards.
    output = Output(out=str(folder), shard_size=-(-images // (2 * max(workers, 1))))
    info = DatasetInfo(
        name="benchmark",
        classes=[f"class {c}" for c in range(NUM_CLASSES)],
        background=None,
        license="photographs of scikit-learn (CC BY 2.0) and matplotlib (public domain)",
        command="python benchmarks/data.py",
        recipe=recipe,
    )
    tasks = plan_shards("train", images, output.shard_size)
    info = build(output, info, tasks, functools.partial(make_samples, quality=quality))
    shutil.rmtree(loose, ignore_errors=True)
    loose.mkdir()
    for sample in raw_samples(folder, info):
        for suffix in ("jpg", "mask.png"):
            (loose / f"{sample['__key__']}.{suffix}").write_bytes(sample[suffix])
    return folder, loose, info


def raw_samples(folder: Path, info: DatasetInfo) -> list[dict[str, Any]]:
    """Returns all samples as bytes."""
    shards = info.shards("train")
    with Reader(folder, shards) as reader:
        return [reader.read(number, n) for number, shard in enumerate(shards) for n in range(shard.samples)]
