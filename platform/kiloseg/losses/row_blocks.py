"""Sums a loss over blocks of image rows, so that the embeddings of all pixels are never held at full resolution.

Shapes: B batch, H W pixels, h w feature cells, D embedding, P pixels of a block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kiloseg.ops.tiles import tiles
from kiloseg.ops.upsampling import BlockwiseUpsampling

BlockLossFunction = Callable[[int, slice, Tensor], tuple[Tensor, Tensor | None]]
"""Takes the number of an image, rows of it and their upsampled outputs (P, D); returns the loss and its gradient (P, D)."""


def loss_by_rows(
    pixels_BDhw: Tensor, size: tuple[int, int], block_bytes: int, block_loss: BlockLossFunction, *, wants_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns the sum of the losses of all blocks, and its gradient for the network's output.

    Args:
        pixels_BDhw: the output of the network.
        size: (H, W) of the labels.
        block_bytes: the target size in bytes of the pixels of a block, which has at least one row.
        block_loss: computes the loss of a block.
        wants_grad: whether the gradient is wanted; None is returned in its place otherwise.
    """
    B, D, h, w = pixels_BDhw.shape
    upsampling = BlockwiseUpsampling((h, w), size, pixels_BDhw)
    loss = pixels_BDhw.new_zeros(())
    grad_pixels = torch.empty_like(pixels_BDhw) if wants_grad else None
    max_rows = max(block_bytes // (pixels_BDhw.element_size() * D * size[1]), 1)
    for one in tiles(B, 1):
        image = one.start
        columns_hWD = upsampling.columns(pixels_BDhw[image])
        grad_hWD = torch.zeros_like(columns_hWD) if wants_grad else None
        for rows, cells in upsampling.blocks(max_rows):
            part, grad_PD = block_loss(image, rows, upsampling.rows(columns_hWD, rows, cells))
            loss += part
            if grad_hWD is not None and grad_PD is not None:
                upsampling.add_rows_gradient(grad_hWD, grad_PD, rows, cells)
        if grad_pixels is not None and grad_hWD is not None:
            grad_pixels[image] = upsampling.columns_gradient(grad_hWD)
    return loss, grad_pixels
