"""Peak memory of a run that is not run: its own step on fake tensors, which have shapes but no data.

Nothing is trained and next to nothing allocated, so a laptop can say what fits on a card it does not have. The numbers
are those that `PeakMemory` counts on a CPU: live tensors, without what an operation allocates for itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

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
from kiloseg.training.step import autocast_of, training_step


def plan(config: Config, *, num_classes: int | None = None) -> float:
    """Peak GiB of a training step on one worker, without running it or owning a GPU.

    Args:
        config: the run. What decides: `model`, `loss`, `optimizer`, `data.num_classes` (or, where it is None, the data set at
            `data.path`), `data.crop`, and of `trainer` batch_size, channels_last, checkpoint_activations and precision, where
            auto is planned as float32. A compiled network is planned as if it were not.
        num_classes: C in place of the config's, also beyond the 65,535 that a data set can hold.

    Raises:
        ValueError: the number of classes is known from nowhere, or a model that cannot be built or trained.
    """
    return _fake_run(config, num_classes).training_gib(config.trainer.batch_size)


def plan_evaluation(config: Config, *, num_classes: int | None = None, size: tuple[int, int] | None = None) -> float:
    """Peak GiB of predicting a validation batch of `data.val_batch_size` images, the optimiser's state still held.

    Args:
        config: as for `plan`.
        num_classes: as for `plan`.
        size: (H, W) of the images, multiples of 32; the training crop if not given.

    Raises:
        ValueError: as `plan`.
    """
    run = _fake_run(config, num_classes)
    return run.evaluation_gib(config.data.val_batch_size, size or (config.data.crop, config.data.crop))


def largest_batch(config: Config, budget_gib: float, *, num_classes: int | None = None) -> int:
    """The most images per training step whose planned peak is within `budget_gib`; 0 if not even one image fits.

    Exact: one image more would not fit. A network that cannot train on a single image (batch normalisation of a 1 x 1 map
    needs two) gets 0 where two do not fit.

    Args:
        config: as for `plan`; its `trainer.batch_size` plays no part.
        budget_gib: above 0. Leave room for what is not counted: CUDA's context, convolution workspaces, fragmentation.
        num_classes: as for `plan`.

    Raises:
        ValueError: as `plan`, or a budget that is not above 0.
    """
    if not budget_gib > 0:
        raise ValueError(f"budget_gib = {budget_gib}: expected more than 0 GiB")
    peak_gib = _fake_run(config, num_classes).training_gib
    fits, low = 2, peak_gib(2)
    if low > budget_gib:
        return _fits_alone(peak_gib, budget_gib)
    # The peak is nearly affine in the batch, so the line through two points leads to the answer or next to it.
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


def _fake_run(config: Config, num_classes: int | None) -> _FakeRun:
    num_classes = num_classes or _count_classes(config)
    # Weights that are loaded weigh what those drawn do.
    return _made(override(config, {"model.weights": "none", "trainer.compile": False}), num_classes)


@functools.lru_cache(maxsize=1)
def _made(config: Config, num_classes: int) -> _FakeRun:
    """Kept for the next question about the same run: making a network takes longer than a step of it."""
    return _FakeRun(config, num_classes)


class _FakeRun:
    """Model and optimiser of a run on fake tensors, and the peaks of their steps."""

    def __init__(self, config: Config, num_classes: int) -> None:
        self.config = config
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.segmenter = build_segmenter(config, num_classes, "meta")
        with self.mode:
            # Made on "meta" and then faked: under the mode itself backbones that read a value back cannot be made.
            self.segmenter.to_empty(device="cpu")
            self.optimizer = build_optimizer(self.segmenter, config.optimizer)
        self.autocast = autocast_of(config.trainer.precision, torch.device("cpu"))

    def training_gib(self, images: int) -> float:
        """Peak of a step on so many images that follows at least one other."""
        self._hold_state(images)
        live = LiveTensors()
        self._step(images, live)
        return live.peak_bytes / GIB

    def _hold_state(self, images: int = 2) -> None:
        """Takes the first step, in which the optimiser makes its state."""
        if not self.optimizer.state:
            self._step(min(images, 2), LiveTensors())

    def _step(self, images: int, live: LiveTensors) -> None:
        self.segmenter.train()
        side = self.config.data.crop
        with self.mode:
            batch = self._images(images, side, side), torch.empty((images, side, side), dtype=torch.int64)
            self._add(live, *batch)
            with live, shapes_only():
                training_step(self.config, self.segmenter, self.optimizer, *batch, autocast=self.autocast)

    def evaluation_gib(self, images: int, size: tuple[int, int]) -> float:
        """Peak of predicting so many images of size (H, W)."""
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
