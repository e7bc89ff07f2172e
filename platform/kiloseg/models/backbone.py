"""Finds out how a timm model takes images and what feature maps it gives, by running it once on tensors without data."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

STRIDE = 32
"""Sides of images are multiples of this many pixels, and so are sides and positions of windows."""

PROBES = ((160, 224), (256, 192))
"""Heights and widths on which a network is tried; no network is made for them. One that takes both takes any multiple of 32."""

_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})
"""Arguments by which models of timm resize their position embeddings, or pad their windows, to fit an image."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Describes a timm model as a backbone."""

    options: dict[str, Any]
    """Arguments for `timm.create_model` with which the model takes images of more sizes."""
    reductions: tuple[int, ...]
    """Pixels per feature cell of each feature map, as timm rounds them."""
    native: int | None
    """The side in pixels of the only images that the model takes; None if it takes all sizes."""
    exact: bool
    """Whether every feature map has exactly the image's size divided by its reduction."""

    @property
    def window(self) -> int | None:
        """The side in pixels, a multiple of 32, of the windows into which images are cut; None if they are not cut."""
        return None if self.native is None else max(round(self.native / STRIDE), 1) * STRIDE


@functools.cache
def examine(name: str) -> Backbone:
    """Returns what the timm model `name` is like as a backbone.

    Raises:
        ValueError: it gives no feature maps, or it cannot be run at any size that is known of it.
    """
    # Building a network on "meta" must not change the random numbers that the real one is drawn from.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            parameters = inspect.signature(type(timm.create_model(name)).__init__).parameters
            options = [each for each in _ANY_SIZE if next(iter(each)) in parameters] or [{}]
            model = timm.create_model(name, features_only=True, **options[0])
        except Exception as error:
            raise ValueError(
                f"model.backbone = {name!r} gives no feature maps and cannot be a backbone ({_words(error)}); choose another timm "
                "model"
            ) from error
    reductions = tuple(model.feature_info.reduction())
    failed = None
    exact = True
    for size in PROBES:
        try:
            shapes = _shapes(model, size)
        except Exception as error:  # any error of a network means that it does not take this size
            failed = error
            break
        if not _scales(shapes, size, reductions):
            failed = ValueError("its feature maps do not grow with the image")
            break
        exact &= all(
            shape == (size[0] // reduction, size[1] // reduction)
            for shape, reduction in zip(shapes, reductions, strict=True)
        )
    if failed is None:
        return Backbone(options=options[0], reductions=reductions, native=None, exact=exact)
    return Backbone(options=options[0], reductions=reductions, native=_native(name, model, failed), exact=False)


def _native(name: str, model: nn.Module, failed: Exception) -> int:
    """Returns the side of the square images that the model was made for."""
    settings = timm.get_pretrained_cfg(name)
    sides = {*(settings.input_size[1:] if settings else ()), 224}
    for side in sorted(sides, key=lambda side: side == 224):
        try:
            _shapes(model, (side, side))
        except Exception as error:  # see `examine`
            failed = error
        else:
            return int(side)
    raise ValueError(
        f"model.backbone = {name!r} cannot be a backbone: it takes images neither of any size nor of {sides} px "
        f"({_words(failed)}); choose another timm model"
    ) from failed


def _shapes(model: nn.Module, size: tuple[int, int]) -> list[tuple[int, int]]:
    model.eval()
    with torch.no_grad():
        maps = model(torch.empty((1, 3, *size), device="meta"))
    last = getattr(model, "output_fmt", None) == "NHWC"
    return [tuple(each.shape[1:3] if last else each.shape[2:4]) for each in maps]


def _scales(shapes: list[tuple[int, int]], size: tuple[int, int], reductions: tuple[int, ...]) -> bool:
    """Returns whether maps have about the image's size divided by their reductions: to 2 cells or a quarter, for their borders."""
    return all(
        abs(side / reduction - cells) <= max(2.0, cells / 4)
        for shape, reduction in zip(shapes, reductions, strict=True)
        for side, cells in zip(size, shape, strict=True)
    )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
