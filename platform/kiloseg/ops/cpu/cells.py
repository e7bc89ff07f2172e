"""Holds the arguments of the kernels that take scores at feature cells: `struct cells` of cells.h, and how work is divided.

Shapes: h w feature cells, H W pixels, S candidates, D embedding, T classes of a panel.
"""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from kiloseg.ops.cpu.batch import Batch
from kiloseg.ops.cpu.tensors import cells_sizes, holds_data, lanes, pointer

PADDING = 24
"""The number of cells beyond the last that a kernel may read and write."""

SEARCH_CELLS = 768
"""The target number of cells in a block of a search."""


class Cells(Batch):
    """Mirrors `struct cells` of ops/cpu/cells.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("S", "block_rows", "chunk", "capacity")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "candidates", "panels", "rows", "target", "left_out", "grad_candidates", "grad_rows",
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


class CellsSearch:
    """Holds the arguments of a search by scores at feature cells, and the buffers that they point to.

    These are the table in panels, the scores of a block of cells with a chunk of the classes (about `tile_bytes`), and, if none is
    given, the map of one image.

    Args:
        pixels_BDhw: the embeddings, float32; channels may be last.
        rows_CD: the rows of the table, float32.
        size: the size (H, W) in pixels.
        tile_bytes: the target size of a matrix of scores in bytes.
        map_cells: the buffer for the map of an image, (h * w + PADDING, width).
    """

    def __init__(
        self,
        pixels_BDhw: Tensor,
        rows_CD: Tensor,
        size: tuple[int, int],
        tile_bytes: int,
        map_cells: Tensor | None = None,
    ) -> None:
        B, D, h, w = pixels_BDhw.shape
        H, W = size
        device = pixels_BDhw.device
        width = -(-D // lanes().lanes) * lanes().lanes
        self.panels = panels(rows_CD)
        division = divide(h, w, len(self.panels), tile_bytes, SEARCH_CELLS)
        self.capacity = division.lines(h, H) * W
        """The most pixels of a block."""
        if map_cells is None:
            map_cells = torch.zeros((h * w + PADDING, width), device=device)
        self.map = map_cells
        self.scores = torch.empty((division.chunk, division.cells, self.panels.shape[2]), device=device)
        self.starts = torch.empty(h + w + 2, dtype=torch.int32, device=device)
        self.parts = torch.empty(H + W, device=device)
        self.pixels = pixels_BDhw
        self.sizes = {
            "B": B, "D": D, "h": h, "w": w, "H": H, "W": W, "S": len(rows_CD), "width": width,
            "block_rows": division.block_rows, "chunk": division.chunk, "capacity": self.capacity,
            "threads": torch.get_num_threads(),
        }  # fmt: skip

    def arguments(self, **more: int | None) -> Cells:
        """Returns the arguments, with `more` fields; only for tensors that hold data."""
        assert holds_data(self.pixels)
        h, H = self.sizes["h"], self.sizes["H"]
        image_stride, dim_stride, row_stride, column_stride = self.pixels.stride()
        return Cells(
            image_stride=image_stride,
            dim_stride=dim_stride,
            row_stride=row_stride,
            column_stride=column_stride,
            pixels=self.pixels.data_ptr(),
            panels=pointer("panels", self.panels),
            map=pointer("map", self.map),
            scores=pointer("scores", self.scores),
            y_starts=pointer("y_starts", self.starts, torch.int32),
            x_starts=pointer("x_starts", self.starts[h + 1 :], torch.int32),
            y_parts=pointer("y_parts", self.parts),
            x_parts=pointer("x_parts", self.parts[H:]),
            **self.sizes,
            **more,
        )
