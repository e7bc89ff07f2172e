"""Measures peak memory of training or validation steps: the allocator's on a GPU, the sum of live tensors on a CPU."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kiloseg.memory.live_tensors import LiveTensors

GIB = 2**30


def parse_gib(amount: str, name: str) -> float:
    """Returns the GiB in an amount such as "24GiB" or "24".

    Args:
        amount: the text that a user wrote.
        name: the name of the option that the user gave, for the message.

    Raises:
        ValueError: the text is anything else or empty.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GiB)?", amount)
    if not match or float(match[1]) == 0:
        raise ValueError(f"{name} {amount!r}: expected an amount such as 24GiB (GiB, 1024^3 bytes)")
    return float(match[1])


class PeakMemory:
    """Measures the peak over the steps run inside `with peak.step(...)`. Of several steps, the largest peak counts.

    On CUDA this is the allocator's peak, which costs nothing. On a CPU the process's own size says little (allocators
    keep what they freed, libraries and workers add to it), so live tensors are counted instead: parameters, gradients,
    optimizer state, activations, inputs. Counting slows a step, so do it for two: the second already has the optimizer's
    state. torch.compile is inactive while tensors are counted.

    Args:
        device: the device on which the step runs.
        external: modules and optimizers that already exist.
    """

    def __init__(self, device: torch.device, *external: nn.Module | torch.optim.Optimizer) -> None:
        self.device = device
        self._external = external
        self._peak_bytes = 0
        self._reserved_bytes = 0

    @property
    def kind(self) -> str:
        """The kind of memory that `gib` counts: "cuda_allocated" or "cpu_live_tensors"."""
        return "cuda_allocated" if self.device.type == "cuda" else "cpu_live_tensors"

    @property
    def gib(self) -> float:
        """The peak in GiB (2^30 bytes)."""
        return self._peak_bytes / GIB

    @property
    def reserved_gib(self) -> float | None:
        """The peak in GiB that CUDA's allocator reserved, including free blocks; None on a CPU, which reserves nothing."""
        return self._reserved_bytes / GIB if self.device.type == "cuda" else None

    @contextlib.contextmanager
    def step(self, *inputs: Tensor) -> Iterator[None]:
        """Measures the code that runs inside; `inputs` are the tensors of the batch, which already exist."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            self._peak_bytes = max(self._peak_bytes, torch.cuda.max_memory_allocated(self.device))
            self._reserved_bytes = max(self._reserved_bytes, torch.cuda.max_memory_reserved(self.device))
            return
        live = LiveTensors()
        for module_or_optimizer in self._external:
            live.add_state(module_or_optimizer)
        live.add(*inputs)
        with live:
            yield
        self._peak_bytes = max(self._peak_bytes, live.peak_bytes)
