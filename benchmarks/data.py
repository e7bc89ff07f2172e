"""Measures images per second from shards to normalized batches, against bare decoding of the same bytes and two other ways.

    python benchmarks/data.py
    python benchmarks/data.py --quality 96 --jitter 0.4 --loader-workers 8

All cases do the same to an image: decode, scale by 0.5 to 2, crop 512, flip, batch, all in loader processes, then
normalize in the training process (`kiloseg` leaves that to the device of the model, so it is counted for all alike).

    kiloseg        TrainBatches
    bare Pillow    JPEG and mask decoded by Pillow and nothing else: the limit that ratios are against
    bare kept      the same, in processes that do not give freed memory back to the system, which Pillow asks for
                   again for every image; a stricter limit, where getting memory is expensive
    bare own       the same, by the decoders that kiloseg uses
    torchvision    a Dataset over loose files: decode all, resize all, crop (transforms.v2)
    webdataset     its own loop over the same shards, with the same transforms

Images are 640 x 480, cut from photographs that scikit-learn and matplotlib ship; masks have 4 large regions and 11 objects
of 1,284 classes. Every round runs each case once, in turn; ratios are medians of ratios within a round. Where other work
shares the machine, CPU time an image (of all processes together) says more than images a second.
"""

from __future__ import annotations

import csv
import ctypes
import io
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import webdataset
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from kiloseg.config import Data
from kiloseg.data.codec import IGNORE_ID, decode_image, decode_mask
from kiloseg.data.description import DatasetInfo
from kiloseg.data.reading.decoding import decode_ids, decode_pixels
from kiloseg.data.reading.loader import TrainBatches
from kiloseg.data.reading.order import share
from photographs import HEIGHT, WIDTH, make_data, raw_samples

SCALES = 0.5, 2.0


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures images per second of the data pipeline."""

    images: int = 256
    """The number of images in the data set, each used once per round."""
    quality: int = 90
    """The quality of the JPEGs."""
    crop: int = 512
    batch: int = 16
    jitter: float = 0.0
    """The strength of the color changes; the bare cases have none."""
    loader_workers: int = 2
    """The number of processes that decode."""
    rounds: int = 5
    """How often each case is run, after one warm-up."""
    folder: Path = Path("runs/benchmarks/data")
    """The folder in which the data set is made."""
    csv: Path = Path("runs/benchmarks/data.csv")
    """The file that the table is written to."""


# Cases


class BareDecode(IterableDataset[int]):
    """Decodes this process's share of bytes that are already in memory, and yields how many in place of a batch."""

    def __init__(
        self,
        samples: list[dict[str, Any]],
        batch: int,
        decode: Callable[[bytes], np.ndarray],
        decode_mask: Callable[[bytes], np.ndarray],
    ) -> None:
        self.samples, self.batch, self.decode, self.decode_mask = samples, batch, decode, decode_mask

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        process, processes = (worker.id, worker.num_workers) if worker else (0, 1)
        start, stop = share(len(self.samples), process, processes)
        for first in range(start, stop, self.batch):
            samples = self.samples[first : min(first + self.batch, stop)]
            for sample in samples:
                self.decode(sample["jpg"])
                self.decode_mask(sample["mask.png"])
            yield len(samples)


def keep_memory(_: int) -> None:
    """Has this process's C library keep what is freed, where that library is glibc."""
    trim_threshold, mmap_threshold = -1, -3
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(trim_threshold, 2**28)
        library.mallopt(mmap_threshold, 2**25)


class Transforms:
    """The usual way by transforms.v2: resize all of the image, then crop; int64 labels, 65535 for ignore."""

    def __init__(self, crop: int, jitter: float) -> None:
        fill: dict[Any, Any] = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORE_ID}
        strength = {"brightness": jitter, "contrast": jitter, "saturation": jitter}
        self.after = v2.Compose(
            [
                v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
                v2.RandomHorizontalFlip(0.5),
                v2.ColorJitter(**strength) if jitter else v2.Identity(),
            ]
        )

    def __call__(self, image: Image.Image, mask: Image.Image) -> tuple[Tensor, Tensor]:
        """uint8 (3, crop, crop) and int64 (crop, crop)."""
        scale = SCALES[0] * (SCALES[1] / SCALES[0]) ** random.random()
        size = [round(HEIGHT * scale), round(WIDTH * scale)]
        pixels = v2.functional.pil_to_tensor(image.convert("RGB"))
        labels = torch.from_numpy(np.asarray(mask).astype(np.int32))[None]
        pixels = v2.functional.resize(pixels, size, InterpolationMode.BILINEAR, antialias=True)
        labels = v2.functional.resize(labels, size, InterpolationMode.NEAREST_EXACT)
        cropped, cropped_labels = self.after(tv_tensors.Image(pixels), tv_tensors.Mask(labels))
        return cropped.as_subclass(Tensor), cropped_labels.as_subclass(Tensor)[0].long()


def opened(content: bytes) -> Image.Image:
    """Not decoded yet: Pillow does that when the pixels are asked for."""
    return Image.open(io.BytesIO(content))


class LooseFiles(Dataset[tuple[Tensor, Tensor]]):
    """Images and masks side by side in a folder."""

    def __init__(self, folder: Path, transforms: Transforms) -> None:
        self.images = sorted(folder.glob("*.jpg"))
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.images[index]
        with Image.open(path) as image, Image.open(path.with_suffix(".mask.png")) as mask:
            return self.transforms(image, mask)


class Normalizer:
    """uint8 batches to float32 in memory that is used again, image after image so that each stays in the cache."""

    def __init__(self, arguments: Arguments) -> None:
        self.out = torch.empty(arguments.batch, 3 * arguments.crop**2)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.factor, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, images_B3HW: Tensor) -> None:
        """Whichever of channels and pixels is innermost."""
        last = images_B3HW.is_contiguous(memory_format=torch.channels_last)
        repeats = images_B3HW.shape[3] if last else 1
        factor, shift = (values.repeat(repeats) if last else values[:, None] for values in (self.factor, self.shift))
        shape = (-1, 3 * repeats) if last else (3, -1)
        for image, out in zip(images_B3HW, self.out, strict=False):
            flat = (image.permute(1, 2, 0) if last else image).reshape(shape)
            out.view(flat.shape).copy_(flat).mul_(factor).add_(shift)


def make_cases(arguments: Arguments, folder: Path, loose: Path, info: DatasetInfo) -> dict[str, Callable[[], int]]:
    """By name: a function that goes through the data set once and returns how many images came."""
    normalize = Normalizer(arguments)
    workers = arguments.loader_workers
    samples = raw_samples(folder, info)

    def loader(dataset: Any, **options: Any) -> DataLoader[Any]:
        return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **options)

    def through(batches: Callable[[], Any]) -> Callable[[], int]:
        def run() -> int:
            count = 0
            for images, _ in batches():
                normalize(images)
                count += len(images)
            return count

        return run

    data = Data(
        path=str(folder), crop=arguments.crop, scale_min=SCALES[0], scale_max=SCALES[1], jitter=arguments.jitter,
        loader_workers=workers,
    )  # fmt: skip
    own = TrainBatches(data, info, batch_size=arguments.batch, seed=0)
    transforms = Transforms(arguments.crop, arguments.jitter)
    files = loader(
        LooseFiles(loose, transforms),
        batch_size=arguments.batch,
        shuffle=True,
    )
    paths = [str(folder / shard.name) for shard in info.shards("train")]
    streamed = (
        webdataset.WebDataset(paths, shardshuffle=len(paths))
        .shuffle(1000)
        .to_tuple("jpg", "mask.png")
        .map_tuple(opened, opened)  # its own decode("pil") makes RGB of 8 bits of a mask
        .map(lambda pair: transforms(*pair))
        .batched(arguments.batch, collation_fn=torch.utils.data.default_collate)
    )
    web = loader(streamed, batch_size=None)

    def bare(*decoders: Callable[[bytes], np.ndarray], **options: Any) -> Callable[[], int]:
        batches = loader(BareDecode(samples, arguments.batch, *decoders), batch_size=None, **options)
        return lambda: sum(batches)

    epochs = iter(range(10**9))
    return {
        "bare Pillow": bare(decode_image, decode_mask),
        "kiloseg": through(lambda: own.epoch(next(epochs))),
        "bare kept": bare(decode_image, decode_mask, worker_init_fn=keep_memory),
        "bare own": bare(decode_pixels, decode_ids),
        "torchvision": through(lambda: files),
        "webdataset": through(lambda: web),
    }


# Measuring


def cpu_seconds() -> float:
    """CPU time of this process and its living children, user and system."""
    ticks = 0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main(arguments: Arguments) -> None:
    """Measures all cases and prints the table."""
    torch.set_num_threads(1)
    folder, loose, info = make_data(arguments.images, arguments.quality, arguments.loader_workers, arguments.folder)
    cases = make_cases(arguments, folder, loose, info)
    rates: dict[str, list[float]] = {name: [] for name in cases}
    costs: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(arguments.rounds + 1):
        for name, run in cases.items():
            begin, cpu = time.perf_counter(), cpu_seconds()
            count = run()
            seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
            if number:  # the first starts processes and fills caches
                rates[name].append(count / seconds)
                costs[name].append(1000 * cpu / count)

    def ratio(values: dict[str, list[float]], name: str, base: str) -> float:
        return statistics.median(mine / other for mine, other in zip(values[name], values[base], strict=True))

    sizes = [(len(sample["jpg"]), len(sample["mask.png"])) for sample in raw_samples(folder, info)]
    jpeg, png = (statistics.mean(column) / 1000 for column in zip(*sizes, strict=True))
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "images_per_s", "of_bare_pillow", "cpu_ms_per_image", "cpu_of_bare_pillow"])
        print(f"{'case':14}{'images/s':>10}{'of bare':>9}{'CPU ms':>9}{'of bare':>9}")
        for name in cases:
            rate, cost = statistics.median(rates[name]), statistics.median(costs[name])
            against = ratio(rates, name, "bare Pillow"), 1 / ratio(costs, name, "bare Pillow")
            writer.writerow([name, round(rate, 1), round(against[0], 3), round(cost, 3), round(against[1], 3)])
            print(f"{name:14}{rate:>10.1f}{against[0]:>9.2f}{cost:>9.2f}{against[1]:>9.2f}")
    for rival in ("bare kept", "bare own", "torchvision", "webdataset"):
        by_cpu = 1 / ratio(costs, "kiloseg", rival)
        print(f"kiloseg against {rival}: {ratio(rates, 'kiloseg', rival):.2f} x images/s, {by_cpu:.2f} x by CPU time")
    print(
        f"\n{arguments.loader_workers} loader processes, {jpeg:.0f} kB JPEG and {png:.1f} kB mask an image, jitter "
        f"{arguments.jitter}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}; {arguments.csv}"
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
