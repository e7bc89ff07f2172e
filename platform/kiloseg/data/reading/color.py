"""Changes brightness, contrast and saturation at random in one pass over the pixels."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch

LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in the luma of a pixel, the same as in torchvision."""


class Jitter(NamedTuple):
    """Holds the factors of the three changes and the order in which they are applied."""

    brightness: float
    contrast: float
    saturation: float
    order: tuple[str, ...] = ("brightness", "contrast", "saturation")


def draw_jitter(strength: float, rng: random.Random) -> Jitter:
    """Draws each factor uniformly from 1 - strength to 1 + strength, and a random order, as torchvision's ColorJitter does."""
    brightness, contrast, saturation = (rng.uniform(1 - strength, 1 + strength) for _ in range(3))
    order = tuple(rng.sample(("brightness", "contrast", "saturation"), 3))
    return Jitter(brightness=brightness, contrast=contrast, saturation=saturation, order=order)


def change_colors(image_HW3: np.ndarray, jitter: Jitter) -> np.ndarray:
    """Applies the three changes to a uint8 image (H, W, 3) as one linear map.

    Brightness scales a pixel, contrast blends it with the mean luma of the image, saturation with its own luma L. Each is
    linear, so together they are x -> gain * x + gray * L(x) + offset, and as the weights of L add up to 1, the mean luma
    after each change follows from the one before. Values are rounded and clamped to 0..255 once, at the end. torchvision
    does this after each change and so loses values that a later change would have brought back into range.
    """
    image_3HW = torch.from_numpy(image_HW3).permute(2, 0, 1)
    planes = torch.empty(image_3HW.shape, dtype=torch.float32).copy_(image_3HW)
    luma = planes[0] * LUMA[0]
    luma.add_(planes[1], alpha=LUMA[1]).add_(planes[2], alpha=LUMA[2])
    mean = luma.mean().item()
    gain, gray, offset = 1.0, 0.0, 0.0
    for change in jitter.order:
        factor = getattr(jitter, change)
        if change == "brightness":
            gain, gray, offset = factor * gain, factor * gray, factor * offset
        elif change == "contrast":
            level = (gain + gray) * mean + offset
            gain, gray, offset = factor * gain, factor * gray, factor * offset + (1 - factor) * level
        else:
            gain, gray = factor * gain, gray + (1 - factor) * gain
    luma.mul_(gray).add_(offset + 0.5)  # conversion to integers truncates
    torch.add(luma, planes, alpha=gain, out=planes).clamp_(0, 255)
    # NumPy converts floats to bytes many times faster than torch.
    changed = np.empty_like(image_HW3, order="C")
    np.copyto(changed, planes.permute(1, 2, 0).numpy(), casting="unsafe")
    return changed
