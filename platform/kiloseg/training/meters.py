"""Measures the mean loss and the speed of a run between two reports."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import torch
import torch.distributed
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """Raised if training diverged: its loss is NaN or infinite."""


class RunningMean:
    """Computes the mean of the losses since the last report, on the device so that steps do not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._count = 0

    def add(self, loss: Tensor) -> None:
        """Adds the loss of one step, a scalar on the device."""
        self._sum += loss
        self._count += 1

    def average(self, world_size: int) -> None:
        """Averages over all workers. Every worker must call this."""
        if world_size > 1:
            torch.distributed.all_reduce(self._sum)
            self._sum /= world_size

    def state(self) -> tuple[float, int]:
        """Returns sum and number of the losses, for `load_state`."""
        return self._sum.item(), self._count

    def load_state(self, state: tuple[float, int]) -> None:
        """Continues from a value that `state` returned."""
        self._sum.fill_(state[0])
        self._count = state[1]

    def value(self, step: int) -> float:
        """Returns the mean. A NaN stays in the sum, so none is missed between reports.

        Raises:
            NonFiniteLossError: the mean is NaN or infinite; the message names `step`.
        """
        mean = self._sum.item() / self._count
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the training loss is {mean} before step {step}; lower optimizer.lr, add optimizer.warmup_steps or set "
                "optimizer.clip_norm"
            )
        return mean

    def reset(self) -> None:
        """Starts over with no losses."""
        self._sum.zero_()
        self._count = 0


class Clock:
    """Measures images per second of training steps, without validation and the first steps (counted or compiled)."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images = 0
        self._seconds = 0.0

    @contextlib.contextmanager
    def running(self, *, images: int) -> Iterator[None]:
        """Counts the time of the code that runs inside; with 0 images the time is left out."""
        begin = time.perf_counter()
        yield
        if images:
            self._images += images
            self._seconds += time.perf_counter() - begin

    def images_per_s(self) -> float:
        """Returns the images per second, or 0 before any step has been counted."""
        if self._device.type == "cuda":
            begin = time.perf_counter()
            torch.cuda.synchronize(self._device)
            self._seconds += time.perf_counter() - begin
        return self._images / self._seconds if self._seconds else 0.0
