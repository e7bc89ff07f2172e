"""Varies the backgrounds made from few photographs, so a network cannot memorize them: it blends, recolors and warps squares, and
computes textures. It needs only NumPy and Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from synthetic.backgrounds import random_square

_KINDS = ("plain", "blend", "recolored", "warped", "texture")
_SHARES = {True: (0.2, 0.2, 0.2, 0.15, 0.25), False: (0.4, 0.2, 0.2, 0.2, 0.0)}


def varied_square(
    rng: np.random.Generator, photographs: Sequence[Image.Image], size: int, *, textures: bool
) -> np.ndarray:
    """Returns a random background: float32 of shape (size, size, 3), about 0 to 255.

    Args:
        rng: the generator that decides everything.
        photographs: the photographs to cut from.
        size: the side in pixels.
        textures: whether a quarter of them are textures that show no photograph.
    """
    kind = _KINDS[int(np.searchsorted(np.cumsum(_SHARES[textures]), rng.random(), side="right").clip(max=4))]
    if kind == "texture":
        return texture(rng, size)
    if kind == "warped":
        return _warped(rng, photographs, size)
    square = random_square(rng, photographs, size)
    if kind == "blend":
        other = _recolored(rng, random_square(rng, photographs, size))
        weight = smooth_noise(rng, size, 1 + int(rng.integers(4)))[..., None]
        return square * weight + other * (1 - weight)
    return _recolored(rng, square) if kind == "recolored" else square


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Mixes two random colors by smooth noise of several scales, stripes or checks: float32 (size, size, 3)."""
    low, high = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    pattern = rng.integers(3)
    if pattern == 0:
        weight = np.stack([smooth_noise(rng, size, cells) for cells in (2, 5, 12)]).mean(0)
    else:
        down, across = np.mgrid[:size, :size].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), size * rng.uniform(0.04, 0.3)
        along = (across * np.cos(angle) + down * np.sin(angle)) / period
        athwart = (down * np.cos(angle) - across * np.sin(angle)) / period
        waves = np.sin(2 * np.pi * along) * (np.sin(2 * np.pi * athwart) if pattern == 2 else 1)
        weight = np.clip(0.5 + waves * rng.uniform(0.4, 4), 0, 1)
    square = low + (high - low) * weight[..., None]
    return (square + 60 * (smooth_noise(rng, size, 3) - 0.5)[..., None]).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Returns random numbers of a grid with `cells` cells per side, smoothly interpolated: float32 (size, size), 0 to 1."""
    grid = Image.fromarray(rng.integers(0, 256, (cells + 1, cells + 1), dtype=np.uint8))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), np.float32) * np.float32(1 / 255)


def _recolored(rng: np.random.Generator, square: np.ndarray) -> np.ndarray:
    """Mixes the channels at random, so that gray stays about as bright as it was."""
    mix = 0.5 * np.eye(3)[rng.permutation(3)] + 0.5 * rng.dirichlet((0.5,) * 3, 3)
    gains = rng.uniform(0.7, 1.3, 3)
    colors: np.ndarray = square @ (mix.T * gains).astype(np.float32)
    return 255 - colors if rng.random() < 0.15 else colors


def _warped(rng: np.random.Generator, photographs: Sequence[Image.Image], size: int) -> np.ndarray:
    """Returns a turned, sheared and stretched square of a photograph; it is black where it leaves the photograph."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    side = rng.uniform(0.25, 0.6) * min(photograph.size)
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([[rng.uniform(0.6, 1.6), rng.uniform(-0.5, 0.5)], [0, rng.uniform(0.6, 1.6)]])
    matrix = turn @ stretch * (side / size)
    # These are the corners of the square in the photograph, so it can be moved to lie inside as far as it fits.
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]]) @ matrix.T
    lowest, highest = corners.min(0), corners.max(0)
    room = np.maximum(np.array(photograph.size) - (highest - lowest), 0)
    left, top = rng.random(2) * room - lowest
    terms = (matrix[0, 0], matrix[0, 1], left, matrix[1, 0], matrix[1, 1], top)
    warped = photograph.transform((size, size), Image.Transform.AFFINE, terms, Image.Resampling.BILINEAR)
    return np.asarray(warped, np.float32) * np.float32(rng.uniform(0.6, 1.3))
