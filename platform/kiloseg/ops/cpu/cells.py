"""Holds the arguments of the kernels that take scores at feature cells: `struct cells` of cells.h, and how work is divided.

Shapes: h w feature cells, H W pixels, S candidates, D embedding, T classes of a panel.
"""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

from torch import Tensor

from kiloseg.ops.cpu.tensors import cells_sizes

PADDING = 24
"""The number of cells beyond the last that a kernel may read and write."""


class Cells(ctypes.Structure):
    """Mirrors `struct cells` of ops/cpu/cells.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                "B", "D", "h", "w", "H", "W", "S", "width", "block_rows", "chunk", "capacity",
                "threads", "ignore", "wants_grad", "needs_top", "cosine",
                "image_stride", "dim_stride", "row_stride", "column_stride",
            )
        ),
        *((name, ctypes.c_float) for name in ("tau", "weight")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "pixels", "labels", "candidates", "panels", "rows", "target", "left_out",
                "grad_pixels", "grad_candidates", "grad_rows", "result",
                "map", "grad_map", "scores", "grads", "floats", "integers", "segments", "losses", "stencils",
                "y_starts", "x_starts", "y_parts", "x_parts",
            )
        ),
    )  # fmt: skip


def panels(rows_SD: Tensor) -> Tensor:
    """Arranges the rows in panels of T, padded with zeros, dimensions first: (panels, D, T)."""
    S, D = rows_SD.shape
    tile = cells_sizes().tile
    num_panels = -(-S // tile)
    filled = rows_SD.new_zeros(num_panels, D, tile)
    whole = S // tile
    filled[:whole] = rows_SD[: whole * tile].unflatten(0, (whole, tile)).mT
    if whole < num_panels:
        filled[whole, :, : S - whole * tile] = rows_SD[whole * tile :].T
    return filled


class Division(NamedTuple):
    """Says how an image is divided into blocks of rows of cells, and the classes into chunks of panels."""

    block_rows: int
    """The rows of intervals between cells in a block."""
    chunk: int
    """The number of panels whose scores are held at a time."""
    cells: int
    """The number of cells between the scores of two panels."""

    def lines(self, h: int, H: int) -> int:
        """Returns the largest number of pixel rows in a block."""
        return min(H, math.ceil((self.block_rows + 1) * H / h) + 2)


def divide(h: int, w: int, num_panels: int, tile_bytes: int, block_cells: int) -> Division:
    """Chooses blocks of about `block_cells` cells whose scores with a chunk of panels take about `tile_bytes`."""
    tile, intervals = cells_sizes().tile, max(h - 1, 1)
    rows = max(min(block_cells, tile_bytes // (4 * tile)) // w - (h > 1), 1)
    blocks = -(-intervals // min(rows, intervals))
    rows = -(-intervals // blocks)
    cells = -(-(rows + (h > 1)) * w // PADDING) * PADDING
    return Division(rows, max(min(tile_bytes // (4 * tile * cells), num_panels), 1), cells)
