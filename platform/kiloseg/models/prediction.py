"""Predicts the class whose embedding is nearest to the pixel's, and how certain that is.

Shapes: B batch, H W pixels, h w feature cells, P pixels of a block, D embedding, C classes, k classes sought.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.ops import upsampled_search
from kiloseg.ops.tiles import tiles
from kiloseg.ops.top_k import nearest_classes
from kiloseg.ops.upsampling import BlockwiseUpsampling

BLOCK_BYTES = 2**20
"""Target size in bytes of one P x D matrix of a block of rows."""


class Nearest(NamedTuple):
    """Holds the two classes nearest to every pixel, at full resolution."""

    labels: Tensor
    """int64 (B, H, W): the nearest class."""
    cosine: Tensor
    """float32 (B, H, W), -1 to 1: o.e of the pixel and its nearest class."""
    runner_up: Tensor
    """int64 (B, H, W): the second nearest class."""
    runner_up_cosine: Tensor
    """float32 (B, H, W): o.e of the pixel and the second nearest class. The margin `cosine - runner_up_cosine` is a
    confidence from 0, if two classes are equally near, to 2."""


@torch.no_grad()
def nearest_class(pixels_BDhw: Tensor, table_CD: Tensor, *, size: tuple[int, int], rows_per_class: int = 1) -> Tensor:
    """Finds every pixel's nearest class at full resolution: argmin_c ||o - e_c||, for unit vectors argmax_c o.e_c.

    It works in blocks of rows and tiles of classes: a C-channel map never exists at any resolution, and besides the labels,
    memory is h*W*D and a few times BLOCK_BYTES and kiloseg.ops.tiles.TILE_BYTES. Where it pays,
    scores are taken at feature cells and upsampled inside a tile (`kiloseg.ops.upsampled_search`).

    Args:
        pixels_BDhw: the output of the embedding head.
        table_CD: the class table; rows are normalized here.
        size: (H, W) of the labels.
        rows_per_class: the number of rows of a class, which follow each other in the table; the nearest row decides.

    Returns:
        int64 labels of shape (B, H, W).
    """
    rows_BHW = _nearest_row(pixels_BDhw, table_CD, size)
    return rows_BHW if rows_per_class == 1 else rows_BHW.div_(rows_per_class, rounding_mode="floor")


def _nearest_row(pixels_BDhw: Tensor, table_CD: Tensor, size: tuple[int, int]) -> Tensor:
    if upsampled_search.supports(pixels_BDhw, size, 1, len(table_CD)):
        labels_KBHW, _ = upsampled_search.best_classes(pixels_BDhw, _unit_rows(table_CD), size, 1, wants_cosines=False)
        return labels_KBHW[0]
    labels_BHW = _empty(pixels_BDhw, size, torch.int64)
    for image, rows, _, _, ids_Pk in _search(pixels_BDhw, table_CD, size, 1):
        labels_BHW[image, rows] = ids_Pk.view(-1, size[1])
    return labels_BHW


@torch.no_grad()
def nearest_two(pixels_BDhw: Tensor, table_CD: Tensor, *, size: tuple[int, int], rows_per_class: int = 1) -> Nearest:
    """Finds the nearest class as `nearest_class` does, and the second nearest, each with its cosine.

    Raises:
        ValueError: the table has fewer than 2 classes.
    """
    num_classes = len(table_CD) // rows_per_class
    if num_classes < 2:
        raise ValueError(f"a table of {num_classes} class: expected at least 2, since one class has no runner-up")
    labels_KBHW, cosines_KBHW = nearest_several(
        pixels_BDhw, table_CD, size=size, count=2, rows_per_class=rows_per_class
    )
    return Nearest(labels_KBHW[0], cosines_KBHW[0], labels_KBHW[1], cosines_KBHW[1])


@torch.no_grad()
def nearest_several(
    pixels_BDhw: Tensor, table_CD: Tensor, *, size: tuple[int, int], count: int, rows_per_class: int = 1
) -> tuple[Tensor, Tensor]:
    """Finds the `count` nearest classes of every pixel, as `nearest_class` finds one.

    Args:
        pixels_BDhw: the output of the embedding head.
        table_CD: the class table; rows are normalized here.
        size: (H, W) of the labels.
        count: the number K of classes, 1 to C.
        rows_per_class: the number of rows of a class, which follow each other in the table; the cosine of a class is that of its
            nearest row. More than one are compared at every pixel, without a kernel.

    Returns:
        int64 labels and float32 cosines, both (K, B, H, W), the nearest class first.

    Raises:
        ValueError: the table does not have that many classes.
    """
    num_classes = len(table_CD) // rows_per_class
    if not 1 <= count <= num_classes:
        raise ValueError(f"count = {count}: expected 1 to {num_classes}, the number of classes in the table")
    if rows_per_class == 1 and upsampled_search.supports(pixels_BDhw, size, count, len(table_CD)):
        found = upsampled_search.best_classes(pixels_BDhw, _unit_rows(table_CD), size, count, wants_cosines=True)
        assert found[1] is not None
        return found[0], found[1]
    shape = (count, len(pixels_BDhw), *size)
    labels_KBHW = torch.empty(shape, dtype=torch.int64, device=pixels_BDhw.device)
    cosines_KBHW = torch.empty(shape, dtype=torch.float32, device=pixels_BDhw.device)
    for image, rows, norm_P1, scores_Pk, ids_Pk in _search(pixels_BDhw, table_CD, size, count, rows_per_class):
        # There are only a few values per pixel: sorting them is cheaper than having the search return them in order.
        cosine_Pk, order_Pk = (scores_Pk / norm_P1).sort(dim=1, descending=True, stable=True)
        labels_KBHW[:, image, rows] = ids_Pk.gather(1, order_Pk).T.reshape(count, -1, size[1])
        cosines_KBHW[:, image, rows] = cosine_Pk.T.reshape(count, -1, size[1]).float()
    return labels_KBHW, cosines_KBHW


def _unit_rows(table_CD: Tensor) -> Tensor:
    with torch.autocast(table_CD.device.type, enabled=False):
        return F.normalize(table_CD.float(), dim=1)


def _empty(pixels_BDhw: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return torch.empty((len(pixels_BDhw), *size), dtype=dtype, device=pixels_BDhw.device)


def _search(
    pixels_BDhw: Tensor, table_CD: Tensor, size: tuple[int, int], count: int, rows_per_class: int = 1
) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor]]:
    """Yields for each block: image, rows, pixel lengths (P, 1), dot products with the nearest classes, and their ids."""
    B, D, h, w = pixels_BDhw.shape
    with torch.autocast(pixels_BDhw.device.type, enabled=False):
        pixels_BDhw = pixels_BDhw if pixels_BDhw.dtype == torch.float64 else pixels_BDhw.float()
        rows_DC = F.normalize(table_CD.to(pixels_BDhw.dtype), dim=1).T.contiguous()
        upsampling = BlockwiseUpsampling((h, w), size, pixels_BDhw)
        max_rows = max(BLOCK_BYTES // (pixels_BDhw.element_size() * D * size[1]), 1)
        for one in tiles(B, 1):
            columns_hWD = upsampling.columns(pixels_BDhw[one.start])
            for rows, cells in upsampling.blocks(max_rows):
                # A pixel's own length scales all its scores equally, so the search need not divide by it.
                pixels_PD = upsampling.rows(columns_hWD, rows, cells)
                norm_P1 = torch.linalg.vector_norm(pixels_PD, dim=1, keepdim=True).clamp_(min=1e-12)
                scores_Pk, ids_Pk = nearest_classes(pixels_PD, rows_DC, count, rows_per_class=rows_per_class)
                yield one.start, rows, norm_P1, scores_Pk, ids_Pk
