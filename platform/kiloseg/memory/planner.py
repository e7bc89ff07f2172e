"""Plans the peak memory of a run without running it: takes its step on fake tensors, which have shapes but no data.

Nothing is trained and almost nothing is allocated, so a laptop can say what fits on a card it does not have. The numbers
are those that `PeakMemory` counts on a CPU: live tensors, without temporary memory inside an operation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kiloseg.config import Config
from kiloseg.data.classes import count_classes
from kiloseg.data.description import read_info
from kiloseg.memory.live_tensors import LiveTensors
from kiloseg.memory.peak import GIB
from kiloseg.models import build_segmenter
from kiloseg.ops.tiles import shapes_only
from kiloseg.overrides import override
from kiloseg.training.evaluation import predict
from kiloseg.training.optimizer import build_optimizer
from kiloseg.training.precision import autocast_of
from kiloseg.training.step import training_step

DeviceType = Literal["cpu", "cuda"]


def plan(config: Config, *, num_classes: int | None = None, device: DeviceType = "cuda") -> float:
    """Returns the peak GiB of a training step on one worker, without running it or needing a GPU.

    Args:
        config: the run. These settings count: `model`, `loss`, `optimizer`, `data.num_classes` (or, if it is None, the data
            set at `data.path`), `data.crop`, and of `trainer` batch_size, micro_batch_size, channels_last,
            checkpoint_activations and precision, where auto is planned as float32. A compiled network is planned as if it were
            not compiled.
        num_classes: the number of classes C instead of the config's; it may exceed the 65,535 that a data set can hold.
        device: the type of the device to plan for. It matters with bf16, which reaches fewer layers on some CPUs.

    Raises:
        ValueError: the number of classes is unknown, or the model cannot be built or trained.
    """
    return _fake_run(config, num_classes, device).training_gib(config.trainer.batch_size)


def plan_evaluation(config: Config, *, num_classes: int | None = None, size: tuple[int, int] | None = None) -> float:
    """Returns the peak GiB of predicting `data.val_batch_size` validation images, including the optimizer's state.

    Args:
        config: as for `plan`.
        num_classes: as for `plan`.
        size: the (H, W) of the images, in multiples of 32; the default is the training crop.

    Raises:
        ValueError: as for `plan`.
    """
    run = _fake_run(config, num_classes, "cuda")
    return run.evaluation_gib(config.data.val_batch_size, size or (config.data.crop, config.data.crop))


def largest_batch(
    config: Config, budget_gib: float, *, num_classes: int | None = None, device: DeviceType = "cuda"
) -> int:
    """Returns the most images per training step whose planned peak is within `budget_gib`; 0 if not even one fits.

    The result is exact: one more image would not fit. For a network that cannot train on a single image (batch
    normalization of a 1 x 1 map needs two), the result is 0 if two do not fit.

    Args:
        config: as for `plan`; its `trainer.batch_size` has no effect.
        budget_gib: the budget in GiB, greater than 0. Leave room for memory that is not counted: CUDA's context, convolution
            workspaces, fragmentation.
        num_classes: as for `plan`.
        device: as for `plan`.

    Raises:
        ValueError: as for `plan`, or the budget is not greater than 0.
    """
    if not budget_gib > 0:
        raise ValueError(f"budget_gib = {budget_gib}: expected more than 0 GiB")
    peak_gib = _fake_run(config, num_classes, device).training_gib
    fits, low = 2, peak_gib(2)
    if low > budget_gib:
        return _fits_alone(peak_gib, budget_gib)
    # The peak is nearly affine in the batch size, so the line through two points leads to the answer or close to it.
    other, high = 4, peak_gib(4)
    fails = None if high <= budget_gib else other
    if fails is None:
        fits, low, other, high = other, high, fits, low
    while fails != fits + 1:
        guess = fits + int((budget_gib - low) / (high - low) * (other - fits))
        guess = max(guess, fits + 1) if fails is None else min(max(guess, fits + 1), fails - 1)
        peak = peak_gib(guess)
        if peak > budget_gib:
            fails = other = guess
            high = peak
        else:
            if fails is None:
                other, high = fits, low
            fits, low = guess, peak
    return fits


def _fits_alone(peak_gib: Callable[[int], float], budget_gib: float) -> int:
    try:
        return int(peak_gib(1) <= budget_gib)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            return 0
        raise


def _fake_run(config: Config, num_classes: int | None, device: DeviceType) -> _FakeRun:
    num_classes = num_classes or _count_classes(config)
    # Loaded weights take as much memory as random ones.
    return _made(override(config, {"model.weights": "none", "trainer.compile": False}), num_classes, device)


@functools.lru_cache(maxsize=1)
def _made(config: Config, num_classes: int, device: DeviceType) -> _FakeRun:
    """Makes a fake run and caches it for further calls, since making a network takes longer than a step of it."""
    return _FakeRun(config, num_classes, device)


class _FakeRun:
    """Holds model and optimizer of a run on fake tensors, and measures the peaks of their steps."""

    def __init__(self, config: Config, num_classes: int, device: DeviceType) -> None:
        self.config = config
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.segmenter = build_segmenter(config, num_classes, "meta", runs_on=device)
        with self.mode:
            # Made on "meta" and then faked, since backbones that read a value back cannot be made in fake mode itself.
            self.segmenter.to_empty(device="cpu")
            self.optimizer = build_optimizer(self.segmenter, config.optimizer)
        self.autocast = autocast_of(config.trainer.precision, torch.device("cpu"))

    def training_gib(self, images: int) -> float:
        """Returns the peak GiB of a step on this many images that follows at least one other step."""
        self._hold_state(images)
        live = LiveTensors()
        self._step(images, live)
        return live.peak_bytes / GIB

    def _hold_state(self, images: int = 2) -> None:
        """Takes the first step, in which the optimizer makes its state."""
        if not self.optimizer.state:
            self._step(min(images, 2), LiveTensors())

    def _step(self, images: int, live: LiveTensors) -> None:
        self.segmenter.train()
        side = self.config.data.crop
        # All parts of a batch after the second take as much memory as that one.
        taken = min(images, 2 * (self.config.trainer.micro_batch_size or images))
        with self.mode:
            batch = self._images(images, side, side), torch.empty((images, side, side), dtype=torch.int64)
            self._add(live, *batch)
            with live, shapes_only():
                part = (tensor[:taken] for tensor in batch)
                training_step(self.config, self.segmenter, self.optimizer, *part, autocast=self.autocast)

    def evaluation_gib(self, images: int, size: tuple[int, int]) -> float:
        """Returns the peak GiB of predicting this many images of size (H, W)."""
        self._hold_state()
        self.segmenter.eval()
        live = LiveTensors()
        with self.mode:
            batch = self._images(images, *size), torch.empty((images, *size), dtype=torch.int64)
            self._add(live, *batch)
            with live, shapes_only():
                predict(self.segmenter, batch[0], self.autocast)
        return live.peak_bytes / GIB

    def _images(self, images: int, height: int, width: int) -> Tensor:
        return torch.empty((images, 3, height, width), dtype=torch.uint8)

    def _add(self, live: LiveTensors, *inputs: Tensor) -> None:
        live.add_state(self.segmenter)
        live.add_state(self.optimizer)
        live.add(*inputs)


def _count_classes(config: Config) -> int:
    if config.data.path:
        return count_classes(config.data, read_info(config.data.path))
    if config.data.num_classes is None:
        raise ValueError(
            "data.num_classes = None and data.path is empty: the number of classes must be known to plan; set either"
        )
    return config.data.num_classes
