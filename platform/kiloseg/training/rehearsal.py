"""Tries the shapes of a run before its first step, so that a network that cannot take them is refused before it has trained.

The network is run on tensors without data, in training and in validation, which takes less time than one step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import torch

from kiloseg.config import Config, Data
from kiloseg.models import build_segmenter
from kiloseg.overrides import override
from kiloseg.storage.errors import DataError

Shape = tuple[int, int, int]
"""Number, height and width of the images of a batch."""


def rehearse(config: Config, num_classes: int, *, world: int, validation: Sequence[Shape]) -> None:
    """Runs the network of a run on tensors of its shapes, without data. A network that needs data is not tried.

    Args:
        config: the run.
        num_classes: the number of classes C.
        world: the number of workers that share a training batch.
        validation: the batches of images to predict; see `shapes_to_try`.

    Raises:
        ValueError: the model cannot be built, or it cannot take these shapes; the message names the settings that decide them.
    """
    data = Data(crop=config.data.crop, val_batch_size=config.data.val_batch_size)
    trainer = dataclasses.replace(config.trainer, output="", compile=False)
    known = dataclasses.replace(config, data=data, trainer=trainer)
    _rehearsed(override(known, {"model.weights": "none"}), num_classes, world, tuple(validation))


@functools.lru_cache(maxsize=64)
def _rehearsed(config: Config, num_classes: int, world: int, validation: tuple[Shape, ...]) -> None:
    """Does what `rehearse` says, once for each kind of run in a process."""
    # Weights without data are drawn from no random numbers, but a user's head may draw some.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        segmenter = build_segmenter(config, num_classes, "meta")
        images, side = config.trainer.batch_size // world, config.data.crop
        part = config.trainer.micro_batch_size or images
        try:
            for size in {min(part, images), images % part} - {0}:
                with naming_shapes(config, training_shapes(config, world)):
                    segmenter(torch.empty((size, 3, side, side), dtype=torch.uint8, device="meta"))
            segmenter.eval()
            for size, height, width in validation:
                with naming_shapes(config, f"validation images of {height} x {width} px, data.val_batch_size = {size}"):
                    segmenter(torch.empty((size, 3, height, width), dtype=torch.uint8, device="meta"))
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error):
                raise


def shapes_to_try(areas: Sequence[Shape]) -> list[Shape]:
    """Returns the batches to try of all validation batches: the largest, the smallest and the one with the fewest images."""
    if not areas:
        return []

    def size(shape: Shape) -> int:
        return shape[1] * shape[2]

    return list(dict.fromkeys([max(areas, key=size), min(areas, key=size), min(areas, key=lambda shape: shape[0])]))


def training_shapes(config: Config, world: int) -> str:
    """Names the settings that decide the shape of a training batch, with their values."""
    images = f"trainer.batch_size = {config.trainer.batch_size} over {world} workers"
    if config.trainer.micro_batch_size is not None:
        images += f", trainer.micro_batch_size = {config.trainer.micro_batch_size}"
    return f"training images of data.crop = {config.data.crop} px, {images}"


@contextlib.contextmanager
def naming_shapes(config: Config, shapes: str) -> Iterator[None]:
    """Names the settings in the error if a network rejects the shape of its input, since its own error does not.

    Raises:
        ValueError: replaces the network's own error.
    """
    try:
        yield
    except DataError:
        raise
    except (AssertionError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _about_shapes(error):
            raise
        model = config.model
        raise ValueError(
            f"model.arch = {model.arch!r} over model.backbone = {model.backbone!r} cannot take {shapes} ({_brief(error)}); change "
            "these, or choose another model"
        ) from error


def _about_shapes(error: RuntimeError) -> bool:
    """Returns whether an error of torch says that shapes do not fit, and not that memory ran out or a device failed."""
    text = str(error).lower()
    words = ("size", "shape", "dimension", "broadcast", "height=", "mat1 and mat2")
    return any(word in text for word in words) and not any(word in text for word in ("memory", "cuda error", "meta"))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
