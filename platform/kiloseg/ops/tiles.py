"""Cuts a long axis into pieces; a planner that counts bytes visits only a few of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

TILE_BYTES = {"cpu": 2 * 2**20, "cuda": 32 * 2**20}
"""The target size of one matrix of scores in bytes, by device. On two CPU cores with 1,000 classes, 2 MiB was the fastest: smaller
tiles spend time on calls, larger ones leave the cache (0.43 s at 0.25 MiB, 0.24 s at 2 MiB, 0.39 s at 8 MiB for 147,456 pixels).
Tiling classes as well as pixels needs the scores twice, once for the sums and once for the table's gradient, and was slower at
1,284, 10,000 and 100,000 classes (1.2 to 1.6 x). The value for a GPU, where a call costs as much as reading 10 MiB, was not
measured."""

MIN_PIXELS = 16
"""The fewest pixels of a tile, however many classes there are. With fewer, a product reads the whole table for a handful of
results (100,000 classes, 12 dimensions, one core: 4.7 ns per score with 2 pixels, 3.1 to 3.2 with 10 to 20)."""

_shapes_only: ContextVar[bool] = ContextVar("shapes_only", default=False)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Makes `tiles` leave pieces out while the context is active: for steps on fake tensors, whose results nobody reads."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def tiles(length: int, size: int) -> Iterator[slice]:
    """Yields slices of at most `size` that cover 0 to `length` - 1; inside `shapes_only`, only the first two and the last.

    All slices but the last have the same size. From the second on, a piece is computed while the leftovers of the one before
    (buffers, accumulated gradients) are alive. So these three have the peak of all, and a loss over 100,000 classes is planned in
    seconds.
    """
    starts = range(0, length, size)
    visited = [*starts[:2], *starts[2:][-1:]] if _shapes_only.get() else starts
    return (slice(start, min(start + size, length)) for start in visited)


def tile_pixels(width: int, like: Tensor, tile_bytes: int | None = None) -> int:
    """Returns the pixels of a tile of about `tile_bytes` with `width` values per pixel of the type of `like`, at least MIN_PIXELS.

    None means TILE_BYTES of the device of `like`.
    """
    if tile_bytes is None:
        tile_bytes = TILE_BYTES.get(like.device.type, TILE_BYTES["cuda"])
    return max(tile_bytes // (like.element_size() * width), MIN_PIXELS)
