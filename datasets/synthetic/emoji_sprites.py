"""Turns vendors' pictures into sprites of one size, and finds which of them look the same."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from kiloseg.storage.errors import DataError

SIDE = 64
"""The side in pixels: the size that two vendors ship. The others are shrunk to it, so sharpness does not reveal a vendor."""

TWIN = 0.0355
"""Two sprites whose difference (see `twins`) is below this are twins.

Of 1,563 emoji this leaves 1,536, as does every value from 0.0339 to 0.0373. Twins are then 57 pairs of families that
Twitter draws with equal silhouettes (difference 0), and man-frowning/man-pouting 0.019, clock1230/clock6 0.031
(Twitter), astronaut/male-astronaut 0.017, astronaut/female-astronaut 0.034, firefighter/male-firefighter 0.027,
bride_with_veil/man_with_veil 0.029 (Fluent), supervillain/male_supervillain 0.031 (Google). The nearest that stay
apart are smiling_imp/imp 0.037 and farmer/male-farmer 0.039 (Fluent), three/eight 0.042 (Google).
"""


def sprite(picture: bytes) -> np.ndarray:
    """Reads a picture file as uint8 of shape (SIDE, SIDE, 4): red, green, blue times opacity, and opacity.

    Colors are premultiplied, so any color that a file holds at invisible pixels is removed.

    Raises:
        ValueError: The file is not a picture.
    """
    try:
        image = Image.open(io.BytesIO(picture), formats=("PNG", "WEBP")).convert("RGBA").convert("RGBa")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"its {len(picture)} bytes are not a PNG or WebP picture ({error})") from error
    if image.size != (SIDE, SIDE):
        scale = SIDE / max(image.size)
        width, height = (max(1, round(scale * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
        square = Image.new("RGBa", (SIDE, SIDE))
        square.paste(image, ((SIDE - width) // 2, (SIDE - height) // 2))
        image = square
    return np.asarray(image)


def sprites_of(pictures: dict[str, bytes], codes: list[str], vendor: str) -> np.ndarray:
    """Returns sprites in the order of `codes`: uint8 of shape (C, SIDE, SIDE, 4).

    Raises:
        DataError: A picture cannot be read or is empty.
    """
    sprites = np.empty((len(codes), SIDE, SIDE, 4), np.uint8)
    for number, code in enumerate(codes):
        try:
            sprites[number] = sprite(pictures[code])
            if not (sprites[number, ..., 3] >= 128).any():
                raise ValueError("none of its pixels is at least half opaque")
        except ValueError as error:
            raise DataError(
                f"the picture of emoji {code} by {vendor}: {error}; expected the contents of npm's package"
            ) from error
    return sprites


def some_sprites_of(pictures: dict[str, bytes], codes: list[str], vendor: str) -> np.ndarray:
    """Returns sprites in the order of `codes` for a vendor that may lack some: as `sprites_of`, but transparent if it draws none,
    or draws two alike, so that nobody could tell which is meant.

    Raises:
        DataError: A picture cannot be read or is empty.
    """
    rows = [number for number, code in enumerate(codes) if code in pictures]
    sprites = np.zeros((len(codes), SIDE, SIDE, 4), np.uint8)
    sprites[rows] = sprites_of(pictures, [codes[row] for row in rows], vendor)
    for pair in twins(sprites[rows]):
        sprites[[rows[one] for one in pair]] = 0
    return sprites


def twins(sprites: np.ndarray, threshold: float = TWIN) -> list[tuple[int, int]]:
    """Returns pairs of sprites, smaller position first, that look the same: uint8 (C, SIDE, SIDE, 4) to positions in C.

    The difference of two sprites is the root of the mean squared difference of their four channels, as a share of full scale, over
    the pixels that either covers. It is counted in integers, so every machine finds the same pairs.
    """
    flat = sprites.reshape(len(sprites), -1).astype(np.float32) / 255
    squares = np.square(flat).sum(1)
    opacity = sprites[..., 3].reshape(len(sprites), -1).astype(np.int64)
    cover = opacity.sum(1) / 255
    # All pairs are compared roughly at once; possible twins are then compared exactly. What either covers is at most the sum.
    rough = squares[:, None] + squares - 2 * flat @ flat.T
    near = rough <= 1.01 * 4 * threshold**2 * (cover[:, None] + cover) + 0.5
    pairs = []
    for first, second in zip(*np.nonzero(np.triu(near, 1)), strict=True):
        difference = sprites[first].astype(np.int64) - sprites[second]
        either = np.maximum(opacity[first], opacity[second]).sum()
        if np.square(difference).sum() < threshold**2 * 4 * 255 * either:
            pairs.append((int(first), int(second)))
    return pairs
