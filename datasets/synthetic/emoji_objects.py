"""Draws one object of a scene: a sprite resized, turned, mirrored and slightly recolored."""

from __future__ import annotations

import numpy as np
from PIL import Image

LONGEST = (0.15, 0.36)
"""The smallest and largest longer side of an object as a share of the scene: 38 to 92 pixels of 256. Two vendors ship 64."""
MAX_ROTATION = 15.0
"""The largest turn in degrees, either way. It is small so that an arrow to the right stays one, and 1 o'clock does not become half
past 12."""
BRIGHTNESS = (0.75, 1.2)
CONTRAST = (0.85, 1.15)
SATURATION = (0.75, 1.25)
TINT = (0.94, 1.06)
"""The range of factors, the last for red, green and blue each. It is narrow so that a red heart does not become an orange one."""

_LOWEST, _HIGHEST = np.transpose([CONTRAST, SATURATION, BRIGHTNESS, TINT, TINT, TINT])
_RANGES = _HIGHEST - _LOWEST
_IDENTITY = np.eye(3)
_GRAY = np.repeat(np.array([[0.299], [0.587], [0.114]]), 3, axis=1)
"""Gives each color its luminance."""
_OPACITY = np.repeat(np.array([[0], [0], [0], [1]], np.float32), 3, axis=1)
_MARGIN = 2


def draw_object(
    rng: np.random.Generator, sprite: np.ndarray, size: int, *, mirrors: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Makes a random drawing of a sprite for a scene of `size` pixels.

    Args:
        rng: the generator that decides the size, the turn, whether it is mirrored, and the colors.
        sprite: uint8 of shape (SIDE, SIDE, 4), premultiplied.
        size: the side of the scene in pixels.
        mirrors: whether left and right may be exchanged.

    Returns:
        Premultiplied colors and opacity, two float32 of shape (height, width, 3), 0 to 255, cropped to where the opacity is not 0.
        Opacity is repeated three times, since NumPy takes long to broadcast a single one over three colors.
    """
    image = Image.frombytes("RGBa", sprite.shape[1::-1], np.ascontiguousarray(sprite))
    smallest, largest = LONGEST
    longest = size * smallest * (largest / smallest) ** rng.random()
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    if rng.random() < 0.5 and mirrors:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    left, top, right, bottom = image.getbbox() or (0, 0, *image.size)
    scale = longest / max(right - left, bottom - top)
    scaled_size = max(1, round(scale * (right - left))), max(1, round(scale * (bottom - top)))
    scaled = image.resize(scaled_size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    # Without an empty border, edges would be cut instead of blended when it is turned.
    padded = Image.new("RGBa", (scaled.width + 2 * _MARGIN, scaled.height + 2 * _MARGIN))
    padded.paste(scaled, (_MARGIN, _MARGIN))
    # Bicubic would be five times as slow here, and no difference remains after the scaling.
    turned = padded.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    cropped = np.asarray(turned.crop(turned.getbbox()))
    rows = cropped.reshape(-1, 4).astype(np.float32)
    colors, opacity = rows @ _recoloring(rng), rows @ _OPACITY
    # A premultiplied color is never above its opacity.
    np.minimum(np.maximum(colors, 0, out=colors), opacity, out=colors)
    shape = (*cropped.shape[:2], 3)
    return colors.reshape(shape), opacity.reshape(shape)


def _recoloring(rng: np.random.Generator) -> np.ndarray:
    """Returns random brightness, contrast, saturation and tint: float32 (4, 3), by which rows of premultiplied colors and opacity
    are multiplied.

    A color c becomes c . matrix + offset. For a premultiplied color, that is (c a) . matrix + offset a, so nothing appears where
    the opacity a is 0.
    """
    contrast, saturation, brightness, *tint = (_LOWEST + rng.random(6) * _RANGES).tolist()
    matrix = np.empty((4, 3), np.float32)
    matrix[:3] = (saturation * _IDENTITY + (1 - saturation) * _GRAY) * [
        brightness * contrast * factor for factor in tint
    ]
    matrix[3] = 0.5 * (1 - contrast)
    return matrix
