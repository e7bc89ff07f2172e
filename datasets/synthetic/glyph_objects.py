"""Draws one object of the glyphs data set: a plate with its character."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from synthetic.glyph_characters import draw, font

INNER_RADIUS = {"disc": 1.0, "square": 0.8, "hexagon": math.sqrt(3) / 2}
"""The kinds of plates, with the radius of the circle inside each as a share of the one around it."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Describes one object: a plate with its character, in pixels of the scene and radians."""

    class_id: int
    character: str
    cut: str
    center: tuple[float, float]
    radius: float
    """The radius of the circle around the plate, in pixels."""
    angle: float
    plate: str
    plate_color: np.ndarray
    """float32 RGB, 0 to 255."""
    glyph_color: np.ndarray
    fill: float
    """Half the diagonal of the character's box, as a share of the circle inside the plate."""


def draw_object(placement: Placement, size: int) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Returns where in the scene an object lies, and the coverage 0 to 1 of its plate and its character there.

    Returns:
        (rows, columns) and two float32 arrays of that shape.
    """
    x, y = placement.center
    left, top = (math.floor(c - placement.radius - 1) for c in (x, y))
    right, bottom = (math.ceil(c + placement.radius + 1) for c in (x, y))
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, size), min(bottom, size)
    cos, sin = math.cos(placement.angle), math.sin(placement.angle)
    dx = (np.arange(left, right, dtype=np.float32) + 0.5 - x)[None, :]
    dy = (np.arange(top, bottom, dtype=np.float32) + 0.5 - y)[:, None]
    plate = np.clip(0.5 - _outside(placement, cos * dx + sin * dy, cos * dy - sin * dx), 0, 1)
    glyph = _glyph(placement, size, (right - left, bottom - top), (x - left, y - top), cos, sin)
    return (slice(top, bottom), slice(left, right)), plate, glyph * plate


def _outside(placement: Placement, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Returns the distance in pixels to the plate's edge, negative inside, for points in the plate's own upright frame."""
    inner = INNER_RADIUS[placement.plate] * placement.radius
    if placement.plate == "disc":
        return np.hypot(u, v) - inner
    if placement.plate == "hexagon":
        return np.maximum(abs(v), math.sqrt(3) / 2 * abs(u) + abs(v) / 2) - inner
    corner = 0.5 * inner
    a, b = abs(u) - (inner - corner), abs(v) - (inner - corner)
    return np.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - corner


def _glyph(
    placement: Placement, size: int, shape: tuple[int, int], center: tuple[float, float], cos: float, sin: float
) -> np.ndarray:
    """Returns the coverage of the turned character in a window of shape (width, height), its box centered at `center`."""
    drawing = _tight(placement.cut, placement.character, size)
    inner = INNER_RADIUS[placement.plate] * placement.radius
    scale = 2 * placement.fill * inner / math.hypot(*drawing.size)
    # The character is shrunk by a proper filter to twice its size, turned at that resolution, then halved: no jagged strokes.
    width, height = (max(1, round(2 * scale * side)) for side in drawing.size)
    shrunk = drawing.resize((width, height), Image.Resampling.LANCZOS)
    padded = Image.new("L", (width + 4, height + 4))
    padded.paste(shrunk, (2, 2))
    x, y = 2 * center[0], 2 * center[1]
    middle_x, middle_y = padded.width / 2, padded.height / 2
    turn = (cos, sin, middle_x - cos * x - sin * y, -sin, cos, middle_y + sin * x - cos * y)
    turned = padded.transform((2 * shape[0], 2 * shape[1]), Image.Transform.AFFINE, turn, Image.Resampling.BICUBIC)
    return np.asarray(turned.reduce(2), np.float32) / 255


@functools.lru_cache(maxsize=1024)
def _tight(cut: str, character: str, em: int) -> Image.Image:
    """Returns a character cropped to its ink. An em of the scene's size exceeds any plate, so it is only ever shrunk."""
    drawing = draw(character, font(cut, em))
    return drawing.crop(drawing.getbbox())


# The command
