"""Bilinear upsampling of a feature map in blocks of rows, so that the full-resolution map is never held.

Shapes: h w cells of the feature map, H W pixels, D channels, R rows in a block, P = R * W pixels of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.ops.tiles import tiles


def _interpolation_matrix(cells: int, pixels: int, like: Tensor) -> Tensor:
    """The (pixels, cells) matrix of 1-D linear interpolation; by torch's own coefficients, so equal to F.interpolate."""
    eye = torch.eye(cells, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], size=pixels, mode="linear", align_corners=False)[0].T.contiguous()


class BlockwiseUpsampling:
    """Upsamples the map of one image block by block, and adds up the gradients of the map.

    Both directions are products with the two 1-D interpolation matrices: columns once for the whole map (h x W x D
    values, a quarter of the full map at stride 4), rows once per block. The result equals
    `F.interpolate(mode="bilinear", align_corners=False)`.

    Args:
        size: (H, W) of the full-resolution map.
        cells: (h, w) of the feature map.
        like: a tensor that gives device and dtype.
    """

    def __init__(self, cells: tuple[int, int], size: tuple[int, int], like: Tensor) -> None:
        self.cells = cells
        self.size = size
        self.rows_Hh = _interpolation_matrix(cells[0], size[0], like)
        self.columns_Ww = _interpolation_matrix(cells[1], size[1], like)

    def columns(self, map_Dhw: Tensor) -> Tensor:
        """The map with its columns upsampled, channels last: (h, W, D)."""
        return torch.matmul(self.columns_Ww, map_Dhw.permute(1, 2, 0))

    def columns_gradient(self, grad_hWD: Tensor) -> Tensor:
        """Gradient of the map from that of `columns`: (D, h, w)."""
        return torch.matmul(self.columns_Ww.T, grad_hWD).permute(2, 0, 1)

    def blocks(self, max_rows: int) -> Iterator[tuple[slice, slice]]:
        """Blocks of at most `max_rows` image rows: (rows of the image, rows of the map that they are made of)."""
        h, H = self.cells[0], self.size[0]
        for rows in tiles(H, max_rows):
            # Pixel centres map to (y + 1/2) h / H - 1/2; a cell more on each side covers rounding.
            first = max(int((rows.start + 0.5) * h / H - 0.5) - 1, 0)
            last = min(int((rows.stop - 0.5) * h / H - 0.5) + 2, h - 1)
            yield rows, slice(first, last + 1)

    def rows(self, columns_hWD: Tensor, block: slice, cells: slice) -> Tensor:
        """Pixels of a block from the result of `columns`: (P, D), rows of the image one after another."""
        _, W, D = columns_hWD.shape
        return torch.mm(self.rows_Hh[block, cells], columns_hWD[cells].reshape(-1, W * D)).view(-1, D)

    def add_rows_gradient(self, grad_hWD: Tensor, grad_PD: Tensor, block: slice, cells: slice) -> None:
        """Adds the gradient of `rows` to `grad_hWD` in place."""
        _, W, D = grad_hWD.shape
        target = grad_hWD[cells].view(-1, W * D)
        target.addmm_(self.rows_Hh[block, cells].T, grad_PD.view(-1, W * D))
