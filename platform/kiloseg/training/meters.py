"""What a run measures between two reports: its mean loss and its speed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import torch
import torch.distributed
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """Training diverged: its loss is NaN or infinite."""


class RunningMean:
    """Mean of losses since the last report, kept on the device so that steps do not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._count = 0

    def add(self, loss: Tensor) -> None:
        """Adds the loss of one step, a scalar on the device."""
        self._sum += loss
        self._count += 1

    def average(self, world_size: int) -> None:
        """Makes it the mean over all workers, every one of which calls this."""
        if world_size > 1:
            torch.distributed.all_reduce(self._sum)
            self._sum /= world_size

    def state(self) -> tuple[float, int]:
        """Sum and number of the losses, for `load_state`."""
        return self._sum.item(), self._count

    def load_state(self, state: tuple[float, int]) -> None:
        """Goes on from what `state` returned."""
        self._sum.fill_(state[0])
        self._count = state[1]

    def value(self, step: int) -> float:
        """The mean; a NaN stays in the sum, so none is missed between reports.

        Raises:
            NonFiniteLossError: it is NaN or infinite; the message names `step`.
        """
        mean = self._sum.item() / self._count
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the training loss is {mean} before step {step}; lower optimizer.lr, add optimizer.warmup_steps or set "
                "optimizer.clip_norm"
            )
        return mean

    def reset(self) -> None:
        """Begins anew."""
        self._sum.zero_()
        self._count = 0


class Clock:
    """Images per second of training steps, without validation and without the first steps, which are counted or compiled."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images = 0
        self._seconds = 0.0

    @contextlib.contextmanager
    def running(self, *, images: int) -> Iterator[None]:
        """Counts the time of what runs inside; with 0 images it is left out."""
        begin = time.perf_counter()
        yield
        if images:
            self._images += images
            self._seconds += time.perf_counter() - begin

    def images_per_s(self) -> float:
        """0 before any step has counted."""
        if self._device.type == "cuda":
            begin = time.perf_counter()
            torch.cuda.synchronize(self._device)
            self._seconds += time.perf_counter() - begin
        return self._images / self._seconds if self._seconds else 0.0
