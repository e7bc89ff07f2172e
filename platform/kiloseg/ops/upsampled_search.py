"""Finds the best one or two classes of every pixel of an upsampled map, from scores at feature cells, on a CPU.

Scores commute with upsampling, and dividing a pixel's scores by its length does not change their order. So the products of
embeddings and table are taken at the cells, and their scores are upsampled inside a tile, where a running best is kept.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, K classes sought.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kiloseg.ops import cpu
from kiloseg.ops.tiles import TILE_BYTES

MAX_BEST = 2
"""The most classes that are kept per pixel."""


class _Best(ctypes.Structure):
    """Mirrors `struct best` of ops/cpu/cells_best.c."""

    _fields_ = (
        ("cells", cpu.Cells),
        ("K", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("scores", "ids", "labels", "cosines")),
    )


def supports(pixels_BDhw: Tensor, size: tuple[int, int], count: int) -> bool:
    """Whether the kernel can search and pays off: on a CPU, in float32, for one or two classes, upsampling to 4 x the pixels."""
    _, D, h, w = pixels_BDhw.shape
    return (
        pixels_BDhw.is_cpu
        and pixels_BDhw.dtype == torch.float32
        and D <= cpu.MAX_DIM
        and count <= MAX_BEST
        and size[0] * size[1] >= 4 * h * w
        and cpu.holds_data(pixels_BDhw) is not None
        and cpu.library() is not None
    )


def best_classes(
    pixels_BDhw: Tensor, rows_CD: Tensor, size: tuple[int, int], count: int, *, wants_cosines: bool
) -> tuple[Tensor, Tensor | None]:
    """Finds the `count` classes of highest cosine for every pixel, best first: int64 (K, B, H, W), and the cosines if wanted.

    Besides these, memory holds the map of one image, the table in panels, the scores of a block of cells with a chunk of the
    classes (about TILE_BYTES), and 2 K numbers for each pixel of a block.

    Args:
        pixels_BDhw: the pixel embeddings, float32.
        rows_CD: the rows, of unit length, float32.
        size: the size (H, W) in pixels.
        count: the number K of classes, 1 or 2, and at most C.
        wants_cosines: whether to return the cosines, float32 (K, B, H, W).
    """
    B = len(pixels_BDhw)
    if not pixels_BDhw.is_contiguous(memory_format=torch.channels_last):
        pixels_BDhw = pixels_BDhw.contiguous()
    search = cpu.CellsSearch(pixels_BDhw, rows_CD, size, TILE_BYTES["cpu"])
    device = pixels_BDhw.device
    labels_KBHW = torch.empty((count, B, *size), dtype=torch.int64, device=device)
    cosines_KBHW = torch.empty((count, B, *size), device=device) if wants_cosines else None
    best_scores, best_ids = (
        torch.empty((count, search.capacity), dtype=dtype, device=device) for dtype in (torch.float32, torch.int32)
    )
    if cpu.holds_data(pixels_BDhw):
        call = _Best(
            cells=search.arguments(),
            K=count,
            scores=cpu.pointer("scores", best_scores),
            ids=cpu.pointer("ids", best_ids, torch.int32),
            labels=cpu.pointer("labels", labels_KBHW, torch.int64),
            cosines=cpu.pointer("cosines", cosines_KBHW),
        )
        kernels = cpu.library()
        assert kernels is not None
        kernels.kiloseg_best(ctypes.byref(call))
    return labels_KBHW, cosines_KBHW
