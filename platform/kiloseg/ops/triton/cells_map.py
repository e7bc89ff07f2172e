"""Adds the gradients of patches up to that of the feature map on a GPU.

Neighboring patches share cells, so a program holds a cell and walks over the patches that it is part of, always in the same order.

Shapes: b images, h w feature cells, N patches of k cells, D embedding, W the power of two that holds D.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kiloseg.ops.triton.cells import CELL_COLUMNS, PATCH_CELLS, UNSPECIALIZED, Patches
from kiloseg.ops.triton.scores import check, width

_CELLS = tl.constexpr(PATCH_CELLS)


def add_patches(grad_bhwD: Tensor, grad_NkD: Tensor, patches: Patches) -> None:
    """Adds to each cell of the map what the patches that it is part of have for it, always in the same order."""
    check(grad_bhwD=grad_bhwD, grad_NkD=grad_NkD)
    D = grad_bhwD.shape[3]
    y, x = patches.y, patches.x
    _add_patches[(grad_bhwD.numel() // D,)](
        grad_bhwD,
        grad_NkD,
        y.starts,
        y.pieces_of_cells,
        x.starts,
        x.pieces_of_cells,
        patches.band,
        patches.rows,
        len(x.starts),
        patches.h,
        patches.w,
        D=D,
        W=width(D),
        num_warps=1,
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _add_patches(
    map_ptr,
    grad_ptr,
    y_starts,
    y_pieces,
    x_starts,
    x_pieces,
    band,
    rows,
    columns,
    h,
    w,
    D: tl.constexpr,
    W: tl.constexpr,
):
    cell = tl.program_id(0).to(tl.int64)
    image, y, x = cell // (h * w), cell // w % h, cell % w
    dims = tl.arange(0, W)
    first_row, last_row = tl.load(y_pieces + y * 2), tl.load(y_pieces + y * 2 + 1)
    first_column, last_column = tl.load(x_pieces + x * 2), tl.load(x_pieces + x * 2 + 1)
    total = tl.load(map_ptr + cell * D + dims, mask=dims < D, other=0.0)
    for row in range(tl.maximum(first_row, band), tl.minimum(last_row + 1, band + rows)):
        for column in range(first_column, last_column + 1):
            slot = (y - tl.load(y_starts + row * 3 + 2)) * CELL_COLUMNS + x - tl.load(x_starts + column * 3 + 2)
            place = ((image * rows + row - band) * columns + column) * _CELLS + slot
            total += tl.load(grad_ptr + place * D + dims, mask=dims < D, other=0.0)
    tl.store(map_ptr + cell * D + dims, total, mask=dims < D)
