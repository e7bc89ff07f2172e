"""Shards to batches: decoded, mapped to class ids, augmented and stacked."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from kiloseg.config import Data
from kiloseg.data.augment import Augment
from kiloseg.data.shards import IGNORE_ID, DataError, DatasetInfo, Shard, check_shards, decode_image, decode_mask
from kiloseg.data.streams import read, segments, share, shuffle, shuffled

STRIDE = 32
"""Sides of a batch are multiples of this: the coarsest feature map of the backbones."""

_UNKNOWN = -2


class Batch(NamedTuple):
    """uint8 images (B, 3, H, W) and int64 labels (B, H, W) with -1 for ignore."""

    images: Tensor
    labels: Tensor


def count_classes(data: Data, info: DatasetInfo) -> int:
    """How many classes a run over this data set has.

    Raises:
        DataError: `data.num_classes` asks for more than there are.
    """
    if data.num_classes is not None and data.num_classes > info.num_classes:
        raise DataError(
            f"data.num_classes = {data.num_classes}, but data set {info.name} has only {info.num_classes} classes; lower it"
        )
    return data.num_classes or info.num_classes


def label_table(info: DatasetInfo, num_classes: int) -> np.ndarray:
    """The one look-up table from stored ids to labels: int32 of length 65,536.

    Classes from `num_classes` on become background where the data set has one among the kept classes, else -1.
    """
    table = np.full(IGNORE_ID + 1, _UNKNOWN, dtype=np.int32)
    background = info.background
    table[: info.num_classes] = -1 if background is None or background >= num_classes else background
    table[:num_classes] = np.arange(num_classes)
    table[IGNORE_ID] = -1
    return table


class _Decoder:
    """Raw sample to uint8 image (H, W, 3) and int32 labels (H, W)."""

    def __init__(self, info: DatasetInfo, num_classes: int) -> None:
        self.info = info
        self.table = label_table(info, num_classes)

    def __call__(self, sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        where = f"{sample['__url__']}: sample {sample['__key__']}"
        image_bytes, mask_bytes = sample.get("jpg", sample.get("png")), sample.get("mask.png")
        if image_bytes is None or mask_bytes is None:
            missing = "image (.jpg or .png)" if image_bytes is None else "mask (.mask.png)"
            parts = ", ".join(part for part in sample if not part.startswith("__"))
            raise DataError(f"{where} has no {missing}; it has: {parts}")
        try:
            image, mask = decode_image(image_bytes), decode_mask(mask_bytes)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
            raise DataError(f"{where} cannot be decoded: {error}") from error
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"{where}: mask is {mask.shape}, its image {image.shape[:2]} (height, width); they must be equal"
            )
        labels = self.table[mask]
        if labels.min(initial=0) == _UNKNOWN:
            unknown = int(mask[labels == _UNKNOWN][0])
            raise DataError(
                f"{where}: mask has class id {unknown}, expected 0 to {self.info.num_classes - 1}, or {IGNORE_ID} for ignore"
            )
        return image, labels


class _TrainStream(IterableDataset[Batch]):
    """One loader process's batches of one epoch; the epoch is shared memory, so that living processes see it change."""

    def __init__(
        self, data: Data, info: DatasetInfo, *, batch_size: int, steps: int, seed: int, rank: int, world: int
    ) -> None:
        self.data, self.batch_size, self.steps = data, batch_size, steps
        self.seed, self.rank, self.world = seed, rank, world
        self.shards = info.shards("train")
        self.left_out = info.num_samples("train") - steps * batch_size * world
        self.decode = _Decoder(info, count_classes(data, info))
        self.augment = Augment(data)
        self.epoch_and_skip = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[Batch]:
        epoch, skip = self.epoch_and_skip.tolist()
        process, workers = _loader_worker()
        # Batches are dealt out by the loader processes in turn. A resumed epoch goes on with the one whose turn it was,
        # and what came before is read but not decoded again.
        worker = (process + skip) % workers
        skipped = skip // workers + (worker < skip % workers)
        first, last = share(self.steps, worker, workers)
        offset = random.Random(f"left out {self.seed} {epoch}").randint(0, self.left_out)
        start = offset + (self.rank * self.steps + first) * self.batch_size
        stop = offset + (self.rank * self.steps + last) * self.batch_size
        raw = read(Path(self.data.path), segments(shuffled(self.shards, self.seed, epoch), start, stop))
        raw = shuffle(raw, self.data.shuffle_buffer, f"samples {self.seed} {epoch} {self.rank} {worker}")
        raw = itertools.islice(raw, skipped * self.batch_size, None)
        while chunk := list(itertools.islice(raw, self.batch_size)):
            yield _stack([self._sample(sample, epoch) for sample in chunk])

    def _sample(self, sample: dict[str, Any], epoch: int) -> tuple[Tensor, Tensor]:
        image, labels = self.decode(sample)
        seed = zlib.crc32(f"{self.seed} {epoch} {sample['__url__']} {sample['__key__']}".encode())
        return self.augment(image, labels, seed)


class TrainBatches:
    """Training batches of one worker, epoch by epoch.

    An epoch gives every sample at most once, over all workers together; a remainder of less than one global batch is
    left out, another one in each epoch (`left_out` counts it). The order is a function of (seed, epoch) for a given
    number of workers and loader processes.

    Args:
        data: where samples lie and how they are augmented.
        info: the description of that data set.
        batch_size: images per step over all workers.
        seed: of order and augmentation.
        rank: which worker this is.
        world: how many workers there are.

    Raises:
        DataError: shards are missing or cut short, or there are fewer samples than one batch.
        ValueError: `batch_size` cannot be split evenly over the workers.
    """

    def __init__(
        self, data: Data, info: DatasetInfo, *, batch_size: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size % world:
            raise ValueError(
                f"trainer.batch_size = {batch_size} cannot be split over {world} workers; use a multiple of {world}"
            )
        check_shards(data.path, info, "train")
        samples = info.num_samples("train")
        self.steps_per_epoch, self.left_out = divmod(samples, batch_size)
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{data.path} has {samples} training samples, fewer than one batch of {batch_size}; lower trainer.batch_size"
            )
        self._stream = _TrainStream(
            data, info, batch_size=batch_size // world, steps=self.steps_per_epoch, seed=seed, rank=rank, world=world
        )
        self._loader = _loader(self._stream, data.loader_workers, persistent=True)

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """The batches of an epoch after its first `skip`."""
        self._stream.epoch_and_skip[:] = torch.tensor([number, skip])
        return iter(self._loader)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Batches without end, from the one that training step `step` (from 0) uses."""
        first, skip = divmod(step, self.steps_per_epoch)
        for number in itertools.count(first):
            yield from self.epoch(number, skip=skip if number == first else 0)


class _ValidationStream(IterableDataset[Batch]):
    def __init__(self, data: Data, info: DatasetInfo, *, rank: int, world: int) -> None:
        self.data, self.rank, self.world = data, rank, world
        self.shards: list[Shard] = info.shards("val")
        self.samples = min(info.num_samples("val"), data.val_samples or info.num_samples("val"))
        self.decode = _Decoder(info, count_classes(data, info))

    def __iter__(self) -> Iterator[Batch]:
        worker, workers = _loader_worker()
        start, stop = share(self.samples, self.rank * workers + worker, self.world * workers)
        raw = read(Path(self.data.path), segments(self.shards, start, stop))
        while chunk := list(itertools.islice(raw, self.data.val_batch_size)):
            yield _stack([_to_tensors(*self.decode(sample)) for sample in chunk])


def validation_batches(data: Data, info: DatasetInfo, *, rank: int = 0, world: int = 1) -> Iterable[Batch]:
    """Every validation sample of this worker's share once, whole images, padded to a common size with ignored pixels.

    Raises:
        DataError: shards are missing or cut short, or there is no validation split.
    """
    check_shards(data.path, info, "val")
    return _loader(_ValidationStream(data, info, rank=rank, world=world), data.loader_workers, persistent=False)


def _loader(stream: IterableDataset[Batch], workers: int, *, persistent: bool) -> DataLoader[Batch]:
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _loader_worker() -> tuple[int, int]:
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


def _to_tensors(image_HW3: np.ndarray, labels_HW: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(image_HW3.transpose(2, 0, 1).copy()), torch.from_numpy(labels_HW).long()


def _stack(samples: list[tuple[Tensor, Tensor]]) -> Batch:
    height = _round_up(max(labels.shape[0] for _, labels in samples))
    width = _round_up(max(labels.shape[1] for _, labels in samples))
    images, labels = [], []
    for image, label in samples:
        padding = (0, width - label.shape[1], 0, height - label.shape[0])
        images.append(F.pad(image, padding))
        labels.append(F.pad(label, padding, value=-1))
    return Batch(torch.stack(images), torch.stack(labels))


def _round_up(side: int) -> int:
    return -(-side // STRIDE) * STRIDE
