"""Turns shards into batches: samples are decoded, mapped to class ids, augmented and stacked."""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from kiloseg.config import Data
from kiloseg.data.classes import select_classes
from kiloseg.data.description import AGAIN, DatasetInfo, check_shards
from kiloseg.data.index import read_index
from kiloseg.data.reading.bad_samples import BadSamples
from kiloseg.data.reading.batches import Batch, Memory, Slots
from kiloseg.data.reading.decoding import Decoder
from kiloseg.data.reading.loader_processes import PREFETCH, data_loader, loader_process
from kiloseg.data.reading.order import Position, as_positions, batched, epoch_order, in_order, share, shuffle
from kiloseg.data.reading.padding import round_up, stack, to_tensors
from kiloseg.data.reading.reader import Reader
from kiloseg.data.reading.sampling import Repeats, SampleClasses
from kiloseg.data.reading.shared_memory import FOLDER, naming_settings, require_room
from kiloseg.data.reading.transforms import Augment, NoSuchPixelError
from kiloseg.storage.errors import DataError

TRAINING_SETTINGS = "data.loader_workers, trainer.batch_size or data.crop"
VALIDATION_SETTINGS = "data.loader_workers or data.val_batch_size"
"""Names of the settings that decide how much shared memory loader processes need."""


class _TrainStream(IterableDataset[Any]):
    """Yields one loader process's batches of one epoch. The epoch is in shared memory, so running processes see it change.

    In a loader process it yields (process, number of the batch) and writes the batch itself to a slot.
    """

    def __init__(self, data: Data, info: DatasetInfo, *, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.data, self.batch_size = data, batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.shards = info.shards("train")
        self.classes = select_classes(data, info)
        self.sample_classes: SampleClasses | None = None
        self.repeats: Repeats | None = None
        if data.repeat_threshold or data.class_crops:
            self.sample_classes = SampleClasses(read_index(data.path, "train"), self.shards, self.classes)
        if self.sample_classes is not None and data.repeat_threshold:
            self.repeats = Repeats(self.sample_classes.repeat_factors(data.repeat_threshold))
        self.samples = info.num_samples("train") if self.repeats is None else self.repeats.least
        self.steps = self.samples // (batch_size * world)
        self.first_of_shard = np.cumsum([0, *(shard.samples for shard in self.shards)])
        self.decode = Decoder(info, self.classes)
        self.augment = Augment(data)
        self.memory = Memory(batch_size, data.crop)
        workers = data.loader_workers
        with naming_settings(TRAINING_SETTINGS):
            self.slots = Slots(workers, PREFETCH, batch_size, data.crop, self.decode.dtype) if workers else None
        self.reader = Reader(data.path, self.shards, cache_gib=data.cache_gib)
        self.bad_samples = BadSamples(data.max_bad_samples)
        self.epoch_and_skip = torch.zeros(2, dtype=torch.int64).share_memory_()

    def __iter__(self) -> Iterator[Batch | tuple[int, int]]:
        epoch, skip = self.epoch_and_skip.tolist()
        process, workers = loader_process()
        counts = None if self.repeats is None else self.repeats.counts(self.seed, epoch)
        order = epoch_order(self.shards, counts, self.seed, epoch)
        left_out = len(order) - self.steps * self.batch_size * self.world
        offset = random.Random(f"left out {self.seed} {epoch}").randint(0, left_out)
        start = offset + self.rank * self.steps * self.batch_size
        mine = order[start : start + self.steps * self.batch_size]
        # Every loader process draws the order of all batches, of which the processes deliver one each in turn, so that the
        # order does not depend on how many there are. The final 0 is the number of a process in the seeds of earlier versions.
        positions = shuffle(mine, self.data.shuffle_buffer, f"samples {self.seed} {epoch} {self.rank} 0")
        chunks = batched(positions, self.batch_size)
        with self.reader as reader:
            reader.expect(_shards_in_turn(mine[skip * self.batch_size :]))
            for number, chunk in enumerate(itertools.islice(chunks, skip + process, None, workers)):
                if self.slots is None:
                    batch = self.memory.batch()
                    self._fill(*batch, reader, chunk, epoch)
                    yield batch
                else:
                    self._fill(*self.slots.take(process, number), reader, chunk, epoch)
                    yield process, number

    def _fill(self, images: Tensor, labels: Tensor, reader: Reader, positions: list[Position], epoch: int) -> None:
        for out, position in zip(zip(images, labels, strict=True), positions, strict=True):
            try:
                self._fill_one(out, reader, position, epoch)
            except DataError as error:
                self.bad_samples.leave_out(*out, position, error)

    def _fill_one(self, out: tuple[Tensor, Tensor], reader: Reader, position: Position, epoch: int) -> None:
        sample = reader.read(position.shard, position.sample)
        image, all_labels = self.decode(sample)
        name = f"{self.seed} {epoch} {sample['__url__']} {sample['__key__']} {position.copy}"
        over = self._label_to_crop(position, f"class {name}")
        try:
            self.augment(image, all_labels, zlib.crc32(name.encode()), over=over, out=out)
        except NoSuchPixelError as error:
            raise DataError(
                f"{sample['__url__']}: sample {sample['__key__']}: its mask has no pixel of class "
                f"{self.classes.names[error.label]!r}, though index.parquet lists it; {AGAIN}"
            ) from error

    def _label_to_crop(self, position: Position, seed: str) -> int | None:
        if self.sample_classes is None:
            return None
        rng = random.Random(seed)
        if rng.random() >= self.data.class_crops:
            return None
        sample = int(self.first_of_shard[position.shard]) + position.sample
        return self.sample_classes.rare_class(sample, rng, self.data.class_crops_exponent)


class TrainBatches:
    """Provides the training batches of one worker, epoch by epoch.

    Over all workers together, an epoch contains every sample at most once, or as often as `data.repeat_threshold` requires
    (see `sampling.Repeats`). A remainder of less than one global batch is left out, a different one in each epoch
    (`left_out` counts it; with repeats it may be one more). The order is a function of (seed, epoch) for a given number of
    workers, whatever the number of loader processes.

    Args:
        data: where the samples are and how they are augmented.
        info: the description of that data set.
        batch_size: images per step over all workers.
        seed: the seed of order and augmentation.
        rank: the number of this worker.
        world: the number of workers.

    Raises:
        DataError: shards are missing or truncated, there are fewer samples than one batch, or settings that depend on the
            classes of samples find no index or an index of other samples.
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
        self._stream = _TrainStream(data, info, batch_size=batch_size // world, seed=seed, rank=rank, world=world)
        self.steps_per_epoch = self._stream.steps
        self.bad_samples = self._stream.bad_samples
        self.left_out = self._stream.samples - self.steps_per_epoch * batch_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"{data.path} has {self._stream.samples} training samples, fewer than one batch of {batch_size}; lower "
                "trainer.batch_size"
            )
        self._loader = data_loader(self._stream, data, persistent=True)

    def close(self) -> None:
        """Closes this process's open shards, which an iterator in the cycle of an error's traceback would leave open."""
        self._stream.reader.close()

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch without the first `skip`, which are not read."""
        self._stream.epoch_and_skip[:] = torch.tensor([number, skip])
        return self._batches(iter(self._loader))

    def _batches(self, yielded: Iterator[Any]) -> Iterator[Batch]:
        slots = self._stream.slots
        return yielded if slots is None else (slots.copied(*which) for which in yielded)

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yields batches endlessly, starting with the one that training step `step` (from 0) uses."""
        first, skip = divmod(step, self.steps_per_epoch)
        for number in itertools.count(first):
            yield from self.epoch(number, skip=skip if number == first else 0)


class _ValidationStream(IterableDataset[Batch]):
    def __init__(self, data: Data, info: DatasetInfo, split: str, *, rank: int, world: int) -> None:
        self.data, self.rank, self.world = data, rank, world
        self.shards = info.shards(split)
        self.samples = min(info.num_samples(split), data.val_samples or info.num_samples(split))
        self.decode = Decoder(info, select_classes(data, info))

    def __iter__(self) -> Iterator[Batch]:
        process, processes = loader_process()
        start, stop = share(self.samples, self.rank, self.world)
        order = in_order(self.shards)[start:stop]
        chunks = batched(as_positions(order), self.data.val_batch_size)
        with Reader(self.data.path, self.shards, cache_gib=self.data.cache_gib) as reader:
            reader.expect(_shards_in_turn(order))
            # Batches, and with them the padding of their images, are the same for any number of loader processes.
            for chunk in itertools.islice(chunks, process, None, processes):
                batch = stack([to_tensors(*self.decode(reader.read(where.shard, where.sample))) for where in chunk])
                if get_worker_info() is not None:
                    # Moved to shared memory here, so that an error reaches the training process. The thread that would
                    # otherwise do it drops the batch.
                    with naming_settings(VALIDATION_SETTINGS):
                        for tensor in batch:
                            tensor.share_memory_()
                yield batch

    @property
    def expected(self) -> int:
        """The number of samples of this training worker over all of its loader processes."""
        start, stop = share(self.samples, self.rank, self.world)
        return stop - start


class ValidationBatches:
    """Provides the batches of this worker's share of a split, each sample once. A lost sample always raises an error."""

    def __init__(self, stream: _ValidationStream) -> None:
        self.samples = stream.expected
        """The number of samples in a whole pass."""
        self._loader = data_loader(stream, stream.data, persistent=False)

    def __iter__(self) -> Iterator[Batch]:
        received = 0
        with naming_settings(VALIDATION_SETTINGS):
            batches = iter(self._loader)
        while True:
            with naming_settings(VALIDATION_SETTINGS):
                batch = next(batches, None)
            if batch is None:
                break
            received += len(batch.images)
            yield batch
        if received != self.samples:
            raise DataError(
                f"validation received {received} of its {self.samples} samples from {self._loader.num_workers} loader "
                f"processes; batches are lost when {FOLDER} is full: lower {VALIDATION_SETTINGS}, or give it more room"
            )


def validation_batches(
    data: Data, info: DatasetInfo, *, split: str = "val", rank: int = 0, world: int = 1
) -> ValidationBatches:
    """Returns batches with every sample of this worker's share of a split once.

    Images are whole and are padded to a common size with ignored pixels.

    Raises:
        DataError: shards are missing or truncated, there is no such split, or loader processes have too little shared
            memory. An iteration raises it if samples did not arrive.
    """
    check_shards(data.path, info, split)
    stream = _ValidationStream(data, info, split, rank=rank, world=world)
    if data.loader_workers:
        areas = [images * height * width for images, height, width in batch_shapes(data, info, split)]
        most = sorted(areas, reverse=True)[: data.loader_workers * (PREFETCH + 1)]
        # An image takes 3 bytes per pixel, its labels take 8.
        require_room(11 * sum(most), VALIDATION_SETTINGS)
    return ValidationBatches(stream)


def batch_shapes(data: Data, info: DatasetInfo, split: str) -> list[tuple[int, int, int]]:
    """Returns images, height and width of each validation batch with its padding, from the index; empty without an index.

    They are those of a single training worker.
    """
    samples = min(info.num_samples(split), data.val_samples or info.num_samples(split))
    try:
        index = read_index(data.path, split, columns=["height", "width"])
    except DataError:
        return []
    if len(index) != info.num_samples(split):
        return []
    sides = [index[name].to_numpy()[:samples] for name in ("height", "width")]
    starts = range(0, samples, data.val_batch_size)
    chunks = ([side[start : start + data.val_batch_size] for side in sides] for start in starts)
    return [(len(rows), round_up(int(rows.max())), round_up(int(columns.max()))) for rows, columns in chunks]


def _shards_in_turn(order: np.ndarray) -> list[int]:
    """Returns the shards in an order of positions, one entry each time another shard begins."""
    shards = order[:, 0]
    return shards[np.flatnonzero(np.diff(shards, prepend=-1))].tolist()
