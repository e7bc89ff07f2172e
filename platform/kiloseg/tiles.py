"""Cutting a long axis into pieces, of which a planner that counts bytes visits a few."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

MIN_PIXELS = 16
"""Pixels of a tile at the least, however many classes there are: with fewer, a product reads the whole table for a handful
of results (100,000 classes, 12 dimensions, one core: 4.7 ns a score with 2 pixels, 3.1 to 3.2 with 10 to 20)."""

_shapes_only: ContextVar[bool] = ContextVar("shapes_only", default=False)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """While entered, `tiles` leaves pieces out: for steps on fake tensors, whose results nobody reads."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def tiles(length: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0 to `length` - 1; inside `shapes_only` the first two and the last.

    All are of one size but the last, and from the second on a piece is computed while what the one before left (buffers,
    accumulated gradients) is alive. So these three have the peak of all, and a loss over 100,000 classes is planned in
    seconds.
    """
    starts = range(0, length, size)
    visited = [*starts[:2], *starts[2:][-1:]] if _shapes_only.get() else starts
    return (slice(start, min(start + size, length)) for start in visited)


def tile_pixels(tile_bytes: int, width: int, like: Tensor) -> int:
    """Pixels of a tile of about `tile_bytes` with `width` values a pixel, at least MIN_PIXELS."""
    return max(tile_bytes // (like.element_size() * width), MIN_PIXELS)
