"""Cuts large images with their masks into tiles."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.writing.build import ShardTask
from kiloseg.data.writing.current import working_on
from kiloseg.data.writing.report import WITHOUT_LABEL
from kiloseg.data.writing.shard import MAX_KEY_BYTES, Sample

MOST_PIXELS = 2**29
"""Pillow warns of an image with more pixels and refuses one with twice as many. While an image is cut, each of its pixels takes
about 10 bytes."""


def grid(side: int, tile: int) -> list[tuple[int, int]]:
    """Returns where tiles begin and end along a side, at most `tile` pixels long; their lengths differ by at most one."""
    number = -(-side // tile)
    ends = [side * end // number for end in range(number + 1)]
    return list(itertools.pairwise(ends))


def num_tiles(height: int, width: int, tile: int) -> int:
    """Returns how many tiles an image is cut into."""
    return -(-height // tile) * -(-width // tile)


def cut_samples(
    task: ShardTask, *, make_samples: Callable[[ShardTask], Iterable[Sample]], tile: int
) -> Iterator[Sample]:
    """Yields the samples of a shard; each that is longer or wider than `tile` is cut into tiles, which are stored as PNG.

    The key of a tile ends in its row and column in the grid. Tiles without any label are left out and counted; of an image
    without any, the first is kept.
    """
    with larger_images():
        for sample in make_samples(task):
            height, width = sample.mask.shape
            if max(height, width) <= tile or not isinstance(sample.image, bytes):
                yield sample
            else:
                yield from _cut(sample, tile)


@contextmanager
def larger_images() -> Iterator[None]:
    """Lets Pillow open images of up to twice MOST_PIXELS meanwhile."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _cut(sample: Sample, tile: int) -> Iterator[Sample]:
    assert isinstance(sample.image, bytes)
    with Image.open(io.BytesIO(sample.image), formats=["JPEG", "PNG"]) as opened:
        whole = opened if opened.mode in ("L", "RGB") else opened.convert("RGB")
        whole.load()
    places = [
        (row, column, *rows, *columns)
        for row, rows in enumerate(grid(sample.mask.shape[0], tile))
        for column, columns in enumerate(grid(sample.mask.shape[1], tile))
    ]
    kept = [place for place in places if (_part(sample.mask, place) != IGNORE_ID).any()] or places[:1]
    counts = {**sample.counts, WITHOUT_LABEL: len(places) - len(kept)}
    for place in kept:
        row, column, top, bottom, left, right = place
        working_on(f"the tile at row {row}, column {column} of {sample.key}")
        buffer = io.BytesIO()
        whole.crop((left, top, right, bottom)).save(buffer, "PNG")
        yield dataclasses.replace(
            sample,
            key=_key(sample.key, f"_y{row}x{column}"),
            image=buffer.getvalue(),
            mask=_part(sample.mask, place),
            meta={**sample.meta, "tile": [top, left, bottom, right]},
            counts=counts,
        )
        counts = {}


def _part(mask_HW: np.ndarray, place: tuple[int, ...]) -> np.ndarray:
    _, _, top, bottom, left, right = place
    return mask_HW[top:bottom, left:right]


def _key(key: str, end: str) -> str:
    """Returns the key of a tile, shortened if it would be too long for a shard."""
    if len((key + end).encode()) <= MAX_KEY_BYTES:
        return key + end
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    room = MAX_KEY_BYTES - len(end) - len(digest) - 1
    return f"{key.encode()[:room].decode(errors='ignore')}-{digest}{end}"
