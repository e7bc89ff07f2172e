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
    """Training diverged."""


class RunningMean:
    """Mean of losses since the last report, kept on the device so that steps do not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._count = 0

    def add(self, loss: Tensor) -> None:
        """One step's."""
        self._sum += loss
        self._count += 1

    def share(self, world: int) -> None:
        """Makes it the mean over `world` workers, all of which call this."""
        if world > 1:
            torch.distributed.all_reduce(self._sum)
            self._sum /= world

    def state(self) -> tuple[float, int]:
        """Their sum and number, for `restore`."""
        return self._sum.item(), self._count

    def restore(self, state: tuple[float, int]) -> None:
        """Goes on from what `state` said."""
        self._sum.fill_(state[0])
        self._count = state[1]

    def take(self, step: int) -> float:
        """Raises NonFiniteLossError; a NaN stays in the sum, so none is missed between reports."""
        mean = self._sum.item() / self._count
        self._sum.zero_()
        self._count = 0
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the training loss is {mean} before step {step}; lower optimizer.lr, add optimizer.warmup_steps or set "
                "optimizer.clip_norm"
            )
        return mean


class Clock:
    """Images a second over the steps themselves, validation and the first (counted) steps left out."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images = 0
        self._seconds = 0.0

    @contextlib.contextmanager
    def running(self, *, images: int) -> Iterator[None]:
        """Counts what runs inside, unless it is of 0 images."""
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
