"""Provides memory for batches that is reused.

The operating system hands out new memory page by page and filled with zeros. Doing that for every batch takes as much time
as decoding half of its images.
"""

from __future__ import annotations

import math
import weakref
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Holds uint8 images (B, 3, H, W), channels innermost for training, and int64 labels (B, H, W) with -1 for ignore."""

    images: Tensor
    labels: Tensor


class Memory:
    """Hands out batches of one size and reuses their memory once neither the batches nor views of them exist."""

    def __init__(self, batch_size: int, crop: int) -> None:
        self.images_shape = batch_size, crop, crop, 3
        self.labels_shape = batch_size, crop, crop
        self._free: dict[int, list[np.ndarray]] = {}

    def batch(self) -> Batch:
        """Returns an uninitialized batch. It is pinned if there is a GPU, since torch itself reuses pinned memory."""
        if torch.cuda.is_available():
            images = torch.empty(self.images_shape, dtype=torch.uint8, pin_memory=True)
            labels = torch.empty(self.labels_shape, dtype=torch.int64, pin_memory=True)
        else:
            images, labels = self._taken(self.images_shape, torch.uint8), self._taken(self.labels_shape, torch.int64)
        return Batch(images.permute(0, 3, 1, 2), labels)

    def _taken(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else np.empty(size, dtype=np.uint8)
        # Tensors over this array keep it alive, and it keeps the memory alive: once it is freed, there are no users left.
        held = memory[:]
        weakref.finalize(held, free.append, memory).atexit = False
        return torch.from_numpy(held).view(dtype).view(shape)


class Slots:
    """Manages the shared memory that loader processes write their batches to.

    Each process has one slot for every batch it may prepare in advance and one for the batch that is being copied out.
    """

    def __init__(self, workers: int, ahead: int, batch_size: int, crop: int, label_type: np.dtype) -> None:
        self.number = ahead + 1
        shape = workers, self.number, batch_size
        self.images = torch.empty((*shape, crop, crop, 3), dtype=torch.uint8).share_memory_().permute(0, 1, 2, 5, 3, 4)
        labels_like = torch.from_numpy(np.empty(0, dtype=label_type))
        self.labels = labels_like.new_empty((*shape, crop, crop)).share_memory_()
        self._written = torch.zeros(shape[:2], dtype=torch.int64).share_memory_()
        self._memory = Memory(batch_size, crop)

    def take(self, worker: int, number: int) -> tuple[Tensor, Tensor]:
        """Returns the images and labels that batch `number` of a process is written to."""
        slot = number % self.number
        self._written[worker, slot] = number
        return self.images[worker, slot], self.labels[worker, slot]

    def copied(self, worker: int, number: int) -> Batch:
        """Returns batch `number` of a process, copied to memory that belongs to the caller."""
        slot = number % self.number
        own = self._memory.batch()
        own.images.copy_(self.images[worker, slot])
        own.labels.copy_(self.labels[worker, slot])
        assert self._written[worker, slot] == number, "a loader process is further ahead than its slots allow"
        return own
