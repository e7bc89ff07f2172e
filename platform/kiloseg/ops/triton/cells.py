"""Divides an image into patches of pixels and their feature cells, and upsamples scores of cells inside a kernel.

A pixel's score is the mean of its four cells' scores, with the weights of bilinear interpolation. So a kernel takes the products
of 16 cells with a tile of classes and turns them into scores of the 128 pixels that lie between these cells by a second product,
with the patch's (128, 16) matrix of interpolation. Both run on tensor cores. The patch is made for stride 4, where 15 of the cells
and nearly all pixels are used; every other factor works, with more of them empty.

Shapes: N patches, h w feature cells, H W pixels, P = PATCH_PIXELS slots for pixels and k = PATCH_CELLS slots for cells of a patch,
D embedding, W the power of two that holds D.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kiloseg.ops import triton as triton_kernels
from kiloseg.ops.tiles import tiles
from kiloseg.ops.triton.scores import load_pieces, pieces, product, split
from kiloseg.ops.upsampling import BlockwiseUpsampling

ROWS = tl.constexpr(8)
COLUMNS = tl.constexpr(16)
"""These are the most rows and columns of pixels in a patch."""

CELL_ROWS = tl.constexpr(3)
CELL_COLUMNS = tl.constexpr(5)
"""These are the most rows and columns of cells around a patch: two and four gaps at stride 4."""

PATCH_PIXELS = ROWS.value * COLUMNS.value
PATCH_CELLS = 16
"""The smallest side of a product on tensor cores; one slot is empty."""

UNSPECIALIZED = ("images", "band", "rows", "columns", "h", "w", "height", "image_width", "S", "C", "N", "magnitude")
"""These arguments of kernels vary from call to call, and 1 must not become a constant either."""

_P = tl.constexpr(PATCH_PIXELS)
_CELLS = tl.constexpr(PATCH_CELLS)


class Axis(NamedTuple):
    """Divides one axis of an image into pieces, the sides of patches."""

    starts: Tensor
    """int32 (pieces, 3): the first pixel, the number of pixels, and the first cell."""
    weights: Tensor
    """float32 (pieces, pixels, cells + 1): the share of each cell in each pixel, 0 for slots without either."""
    pieces_of_cells: Tensor
    """int32 (cells of the axis, 2): the first and the last piece that each cell is part of, which are neighbors."""


class Patches(NamedTuple):
    """Holds the embeddings of a few images and the patches of a band of their rows, as kernels read them."""

    cells: Tensor
    """bfloat16 (3, images * h * w, W): three pieces of the embeddings."""
    y: Axis
    x: Axis
    images: int
    band: int
    """The first row of patches."""
    rows: int
    """The number of rows of patches."""
    h: int
    w: int

    @property
    def number(self) -> int:
        """Returns the number N of patches."""
        return self.images * self.rows * len(self.x.starts)

    def arguments(self) -> tuple[Tensor | int, ...]:
        """Returns what kernels take as `cells_ptr` up to `w`."""
        y, x = self.y, self.x
        return (
            self.cells, y.starts, y.weights, x.starts, x.weights,
            self.images, self.band, self.rows, len(x.starts), self.h, self.w,
        )  # fmt: skip


def blocks(pixels_BDhw: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, list[Patches]]]:
    """Divides a batch into blocks of images and these into bands of patches, of about BLOCK_PATCHES each.

    A block is at least one image, and a band at least one row of patches.

    Args:
        pixels_BDhw: the embeddings at feature cells.
        size: the size (H, W) of the images in pixels.
    """
    B, D, h, w = pixels_BDhw.shape
    y, x = axes((h, w), size, pixels_BDhw.device)
    most = triton_kernels.BLOCK_PATCHES
    for images in tiles(B, max(most // (len(y.starts) * len(x.starts)), 1)):
        b = images.stop - images.start
        rows = max(most // (b * len(x.starts)), 1)
        cells = pieces(pixels_BDhw[images].float().permute(0, 2, 3, 1).reshape(-1, D).contiguous())
        yield (
            images,
            [Patches(cells, y, x, b, band.start, band.stop - band.start, h, w) for band in tiles(len(y.starts), rows)],
        )


def patches_of_rows(cells_3NW: Tensor, cells: tuple[int, int], size: tuple[int, int], rows: slice) -> Patches:
    """Returns the patches of some rows of pixels of one image, which number its pixels from the first of these rows.

    Args:
        cells_3NW: bfloat16, three pieces of the image's embeddings.
        cells: the size (h, w) of the feature map.
        size: the size (H, W) of the image in pixels.
        rows: the rows of pixels.
    """
    y = _rows(cells, size, rows.start, rows.stop, cells_3NW.device)
    return Patches(cells_3NW, y, axes(cells, size, cells_3NW.device)[1], 1, 0, len(y.starts), *cells)


@functools.lru_cache(maxsize=256)
def _rows(cells: tuple[int, int], size: tuple[int, int], start: int, stop: int, device: torch.device) -> Axis:
    matrix_Hh = BlockwiseUpsampling(cells, size, torch.empty(0, dtype=torch.float32)).rows_Hh
    return Axis(*(tensor.to(device) for tensor in _axis(matrix_Hh[start:stop], ROWS.value, CELL_ROWS.value)))


@functools.lru_cache(maxsize=8)
def axes(cells: tuple[int, int], size: tuple[int, int], device: torch.device) -> tuple[Axis, Axis]:
    """Divides both axes of an image of `size` pixels that is upsampled from `cells`; the result is kept for the next batch."""
    upsampling = BlockwiseUpsampling(cells, size, torch.empty(0, dtype=torch.float32))
    y = _axis(upsampling.rows_Hh, ROWS.value, CELL_ROWS.value)
    x = _axis(upsampling.columns_Ww, COLUMNS.value, CELL_COLUMNS.value)
    return Axis(*(tensor.to(device) for tensor in y)), Axis(*(tensor.to(device) for tensor in x))


def _axis(matrix: Tensor, most_pixels: int, most_cells: int) -> Axis:
    """Divides one axis, given its (pixels, cells) matrix of interpolation."""
    cells = matrix.shape[1]
    used = [row.nonzero().view(-1).tolist() for row in matrix]
    starts: list[list[int]] = []
    for pixel, places in enumerate(used):
        if starts and pixel - starts[-1][0] < most_pixels and places[-1] - starts[-1][2] < most_cells:
            starts[-1][1] += 1
        else:
            starts.append([pixel, 1, places[0]])
    weights = torch.zeros(len(starts), most_pixels, most_cells + 1)
    of_cells = torch.tensor([[len(starts), -1]]).repeat(cells, 1)  # a cell that no pixel uses is part of no piece
    for piece, (first, count, cell) in enumerate(starts):
        last = max(places[-1] for places in used[first : first + count])
        weights[piece, :count, : last + 1 - cell] = matrix[first : first + count, cell : last + 1]
        around = of_cells[cell : last + 1]
        around[:, 0].clamp_(max=piece)
        around[:, 1].clamp_(min=piece)
    return Axis(torch.tensor(starts, dtype=torch.int32), weights, of_cells.int())


@triton.jit
def place_of(patch, band, rows, columns):
    """Returns the image of a patch, and its pieces of the two axes."""
    return patch // (rows * columns), band + patch // columns % rows, patch % columns


@triton.jit
def load_cells(cells_ptr, y_starts, x_starts, images, band, rows, columns, h, w, patch, W: tl.constexpr):
    """Loads three pieces of the cells of a patch, each (k, W)."""
    image, row, column = place_of(patch, band, rows, columns)
    cells = tl.arange(0, _CELLS)
    y = tl.load(y_starts + row * 3 + 2) + cells // CELL_COLUMNS
    x = tl.load(x_starts + column * 3 + 2) + cells % CELL_COLUMNS
    inside = (cells < CELL_ROWS * CELL_COLUMNS) & (y < h) & (x < w)
    num_cells = images * h * w
    return load_pieces(cells_ptr, tl.where(inside, (image * h + y) * w + x, num_cells), num_cells, W)


@triton.jit
def load_interpolation(y_weights, x_weights, band, rows, columns, patch, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Loads three pieces of the share of each cell in COUNT pixels of a patch, each (pixels, k)."""
    _image, row, column = place_of(patch, band, rows, columns)
    pixels, cells = FIRST + tl.arange(0, COUNT), tl.arange(0, _CELLS)
    y = (row * ROWS + pixels // COLUMNS)[:, None] * (CELL_ROWS + 1) + (cells // CELL_COLUMNS)[None, :]
    x = (column * COLUMNS + pixels % COLUMNS)[:, None] * (CELL_COLUMNS + 1) + (cells % CELL_COLUMNS)[None, :]
    return split(tl.load(y_weights + y) * tl.load(x_weights + x), ROUND=True)


@triton.jit
def score_cells(e1, e2, e3, z1, z2, z3):
    """Returns the scores of candidates and cells (candidates, k) in three pieces, from three pieces of both.

    Candidates are the rows of this product, because a GPU multiplies 64 rows at a time.
    """
    return split(product(e1, e2, e3, tl.trans(z1), tl.trans(z2), tl.trans(z3)), ROUND=True)


@triton.jit
def load_pixels_of(y_starts, x_starts, band, rows, columns, patch, height, width):
    """Returns the place of each pixel of a patch in a (images, height, width) map, and whether there is a pixel in its slot."""
    image, row, column = place_of(patch, band, rows, columns)
    pixels = tl.arange(0, _P)
    y, x = pixels // COLUMNS, pixels % COLUMNS
    inside = (y < tl.load(y_starts + row * 3 + 1)) & (x < tl.load(x_starts + column * 3 + 1))
    y += tl.load(y_starts + row * 3)
    x += tl.load(x_starts + column * 3)
    return (image.to(tl.int64) * height + y) * width + x, inside
