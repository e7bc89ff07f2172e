"""Cutting a long axis into pieces, of which a planner that counts bytes visits a few."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from torch import Tensor

TILE_BYTES = {"cpu": 2 * 2**20, "cuda": 32 * 2**20}
"""Size aimed at for one matrix of scores, by device. On two CPU cores and 1,000 classes 2 MiB was the fastest: smaller ones pay for
calls, larger ones leave the cache (0.43 s at 0.25 MiB, 0.24 s at 2 MiB, 0.39 s at 8 MiB for 147,456 pixels). Tiles of
classes as well as of pixels need the scores twice, once for the sums and once for the table's gradient, and were slower at
1,284, 10,000 and 100,000 classes (1.2 to 1.6 x). On a GPU, where a call costs as much as reading 10 MiB, not measured."""

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


def tile_pixels(width: int, like: Tensor, tile_bytes: int | None = None) -> int:
    """Pixels of a tile of about `tile_bytes` with `width` values a pixel of the type of `like`, at least MIN_PIXELS.

    None takes TILE_BYTES of the device of `like`.
    """
    if tile_bytes is None:
        tile_bytes = TILE_BYTES.get(like.device.type, TILE_BYTES["cuda"])
    return max(tile_bytes // (like.element_size() * width), MIN_PIXELS)
