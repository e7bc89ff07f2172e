"""Upsamples a feature map bilinearly in blocks of rows, so the full-resolution map is never held.

Shapes: h w cells of the feature map, H W pixels, D channels, R rows in a block, P = R * W pixels of a block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.ops.tiles import tiles


def _interpolation_matrix(cells: int, pixels: int, like: Tensor) -> Tensor:
    """Returns the (pixels, cells) matrix of 1-D linear interpolation, with torch's own coefficients, so it equals
    F.interpolate."""
    eye = torch.eye(cells, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], size=pixels, mode="linear", align_corners=False)[0].T.contiguous()


Piece = tuple[slice, slice]
"""A piece is a range of pixels along one axis, and the cells that they are computed from."""

Patch = tuple[Piece, Piece]
"""A patch is a range of rows and columns of an image, and the rows and columns of cells that they are computed from."""

MAX_SIDE = 32
"""The most pixels along one axis of a patch."""


def _pieces(cells: int, pixels: int, gaps: int) -> list[Piece]:
    """Cuts an axis into pieces that lie between `gaps` + 1 neighboring cells."""
    # Pixel centers map to (y + 1/2) h / H - 1/2; those beyond the outermost cells are computed from these cells.
    last = max(cells - 2, 0)
    lower = [min(max(math.floor((y + 0.5) * cells / pixels - 0.5), 0), last) for y in range(pixels)]
    pieces = []
    for group, members in itertools.groupby(range(pixels), key=lambda y: lower[y] // gaps):
        places = list(members)
        around = slice(group * gaps, min((group + 1) * gaps, cells - 1) + 1)
        for start in range(places[0], places[-1] + 1, MAX_SIDE):
            pieces.append((slice(start, min(start + MAX_SIDE, places[-1] + 1)), around))
    return pieces


def patches(cells: tuple[int, int], size: tuple[int, int], aimed_pixels: int) -> list[list[Patch]]:
    """Cuts an image into patches that few cells surround; each list holds patches of one size.

    A patch lies between neighboring cells and shares those at its border with the next.

    Args:
        cells: (h, w) of the feature map.
        size: (H, W) of the image.
        aimed_pixels: the approximate number of pixels in a patch; at most MAX_SIDE squared.
    """
    gaps = max(round(aimed_pixels * cells[0] * cells[1] / (size[0] * size[1])), 1)
    gaps_y = math.isqrt(gaps)
    rows, columns = _pieces(cells[0], size[0], gaps_y), _pieces(cells[1], size[1], gaps // gaps_y)
    groups: dict[tuple[int, ...], list[Patch]] = {}
    for patch in itertools.product(rows, columns):
        lengths = tuple(part.stop - part.start for piece in patch for part in piece)
        groups.setdefault(lengths, []).append(patch)
    return list(groups.values())


PatchBlock = list[tuple[int, Patch]]
"""A block holds patches of one size that are computed at a time, each with the number of its image."""


def blocks_of_patches(B: int, groups: list[list[Patch]], most_pixels: int) -> list[PatchBlock]:
    """Groups the patches of one size of B images, up to `most_pixels` at a time; the blocks with the most pixels come first.

    The first block therefore takes as much memory as any other, so `kiloseg.ops.tiles.tiles` may leave others out.
    """
    blocks = []
    for group in groups:
        every = list(itertools.product(range(B), group))
        number = max(most_pixels // num_pixels(every[:1]), 1)
        blocks += [every[start : start + number] for start in range(0, len(every), number)]
    return sorted(blocks, key=num_pixels, reverse=True)


def num_pixels(block: PatchBlock) -> int:
    """Returns the number of pixels of a block."""
    _, patch = block[0]
    return len(block) * math.prod(pixels.stop - pixels.start for pixels, _ in patch)


class BlockwiseUpsampling:
    """Upsamples the map of one image block by block, and accumulates the gradients of the map.

    Both directions are products with the two 1-D interpolation matrices: columns once for the whole map (h x W x D
    values, a quarter of the full map at stride 4), rows once per block. The result equals
    `F.interpolate(mode="bilinear", align_corners=False)`.

    Args:
        size: the size (H, W) of the full-resolution map.
        cells: the size (h, w) of the feature map.
        like: a tensor that sets device and dtype.
    """

    def __init__(self, cells: tuple[int, int], size: tuple[int, int], like: Tensor) -> None:
        self.cells = cells
        self.size = size
        self.rows_Hh = _interpolation_matrix(cells[0], size[0], like)
        self.columns_Ww = _interpolation_matrix(cells[1], size[1], like)

    def patch(self, patch: Patch) -> Tensor:
        """Returns the share of each surrounding cell in each pixel of a patch, (P, k), both in row-major order."""
        rows_yi, columns_xj = self.rows_Hh[patch[0]], self.columns_Ww[patch[1]]
        return (rows_yi[:, None, :, None] * columns_xj[None, :, None]).flatten(2).flatten(0, 1)

    def columns(self, map_Dhw: Tensor) -> Tensor:
        """Returns the map with its columns upsampled, channels last: (h, W, D)."""
        return torch.matmul(self.columns_Ww, map_Dhw.permute(1, 2, 0))

    def columns_gradient(self, grad_hWD: Tensor) -> Tensor:
        """Returns the gradient of the map from that of `columns`: (D, h, w)."""
        return torch.matmul(self.columns_Ww.T, grad_hWD).permute(2, 0, 1)

    def blocks(self, max_rows: int) -> Iterator[tuple[slice, slice]]:
        """Yields blocks of at most `max_rows` image rows: (rows of the image, rows of the map that they are computed from)."""
        h, H = self.cells[0], self.size[0]
        for rows in tiles(H, max_rows):
            # Pixel centers map to (y + 1/2) h / H - 1/2; one extra cell on each side covers rounding.
            first = max(int((rows.start + 0.5) * h / H - 0.5) - 1, 0)
            last = min(int((rows.stop - 0.5) * h / H - 0.5) + 2, h - 1)
            yield rows, slice(first, last + 1)

    def rows(self, columns_hWD: Tensor, block: slice, cells: slice) -> Tensor:
        """Returns the pixels of a block from the result of `columns`: (P, D), in row-major order."""
        _, W, D = columns_hWD.shape
        return torch.mm(self.rows_Hh[block, cells], columns_hWD[cells].reshape(-1, W * D)).view(-1, D)

    def add_rows_gradient(self, grad_hWD: Tensor, grad_PD: Tensor, block: slice, cells: slice) -> None:
        """Adds the gradient of `rows` to `grad_hWD` in place."""
        _, W, D = grad_hWD.shape
        target = grad_hWD[cells].view(-1, W * D)
        target.addmm_(self.rows_Hh[block, cells].T, grad_PD.view(-1, W * D))
