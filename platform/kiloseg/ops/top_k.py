"""Finds the classes nearest to pixels.

Shapes: P pixels, D embedding, C classes, K classes sought, G groups of classes.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kiloseg.ops import cpu
from kiloseg.ops.tiles import tile_pixels, tiles

GROUPED_FROM = 4096
"""The number of classes from which the search uses groups. 8 of 1,284 took 1.0 ms for 512 pixels either way; 8 of 10,000 took 4.9
ms directly and 2.6 ms by groups; 8 of 100,000, for 20 pixels, took 1.9 and 0.55 ms (two cores)."""

_GROUP = 16
"""The number of classes in a group. 8 to 32 differ little; with more classes it may be larger."""


def nearest_classes(
    pixels_PD: Tensor,
    rows_DC: Tensor,
    count: int,
    *,
    exclude_P: Tensor | None = None,
    tile_bytes: int | None = None,
    rows_per_class: int = 1,
) -> tuple[Tensor, Tensor]:
    """Finds the `count` classes with the largest dot product with each pixel, in no particular order; the result is exact.

    For unit vectors these are the nearest: ||o - e||^2 = 2 - 2 o.e. On a CPU, in float32 and for up to 64 classes, a compiled
    kernel (`kiloseg.ops.cpu`) does this without a matrix of scores.

    Args:
        pixels_PD: the pixel embeddings; their lengths do not change the result.
        rows_DC: the rows of the class table, unit vectors, as the columns of a contiguous matrix.
        count: the number K of classes, 1 to C, or to C - 1 if classes are excluded.
        exclude_P: a class for each pixel, int64, that must not be found.
        tile_bytes: the target size of the one matrix of scores that is alive at a time; None means
            kiloseg.ops.tiles.TILE_BYTES.
        rows_per_class: the number of rows of a class, which follow each other in the table; the score of a class is that of its
            best row. More than one are compared without a kernel, and a second matrix holds the scores of the classes.

    Returns:
        The dot products (P, K) and class ids, int64 (P, K).
    """
    P, num_rows = len(pixels_PD), rows_DC.shape[1]
    C = num_rows // rows_per_class
    if rows_per_class == 1 and _cpu_kernel_supports(pixels_PD, rows_DC, count):
        return _search_by_cpu_kernel(pixels_PD, rows_DC, count, exclude_P)
    found_PK = pixels_PD.new_empty((P, count))
    ids_PK = torch.empty((P, count), dtype=torch.int64, device=pixels_PD.device)
    size = tile_pixels(num_rows, pixels_PD, tile_bytes)
    # All tiles share one buffer: fresh memory of this size costs more in page faults than the product itself.
    scores = pixels_PD.new_empty(min(size, P) * num_rows)
    for tile in tiles(P, size):
        num = tile.stop - tile.start
        scores_PC = torch.mm(pixels_PD[tile], rows_DC, out=scores[: num * num_rows].view(num, num_rows))
        if rows_per_class > 1:
            scores_PC = scores_PC.unflatten(1, (C, rows_per_class)).amax(2)
        if exclude_P is not None:
            scores_PC.scatter_(1, exclude_P[tile, None], -torch.inf)
        if count == 1:
            found_PK[tile], ids_PK[tile] = scores_PC.max(1, keepdim=True)
        elif count * _GROUP < C and C >= GROUPED_FROM:
            found_PK[tile], ids_PK[tile] = _topk_by_groups(scores_PC, count)
        else:
            found_PK[tile], ids_PK[tile] = scores_PC.topk(count, dim=1, sorted=False)
    return found_PK, ids_PK


class _Search(ctypes.Structure):
    """Mirrors `struct nearest` of ops/cpu/nearest.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("P", "D", "C", "K", "width", "threads", "pixel_stride", "dim_stride")),
        *((name, ctypes.c_void_p) for name in ("pixels", "rows", "excluded", "scores", "ids")),
    )


def _cpu_kernel_supports(pixels_PD: Tensor, rows_DC: Tensor, count: int) -> bool:
    return (
        pixels_PD.is_cpu
        and pixels_PD.dtype == rows_DC.dtype == torch.float32
        and pixels_PD.shape[1] <= cpu.MAX_DIM
        and count <= cpu.MAX_NEAREST
        and cpu.holds_data(pixels_PD) is not None
        and cpu.library() is not None
    )


def _search_by_cpu_kernel(
    pixels_PD: Tensor, rows_DC: Tensor, count: int, exclude_P: Tensor | None
) -> tuple[Tensor, Tensor]:
    P, D = pixels_PD.shape
    rows = cpu.whole_rows(rows_DC.T)
    found_PK = pixels_PD.new_empty((P, count))
    ids_PK = torch.empty((P, count), dtype=torch.int64)
    if not cpu.holds_data(pixels_PD):
        return found_PK, ids_PK
    kernels = cpu.library()
    assert kernels is not None
    excluded_P = None if exclude_P is None else exclude_P.contiguous()
    pixel_stride, dim_stride = pixels_PD.stride()
    search = _Search(
        P=P,
        D=D,
        C=rows_DC.shape[1],
        K=count,
        width=rows.shape[1],
        threads=torch.get_num_threads(),
        pixel_stride=pixel_stride,
        dim_stride=dim_stride,
        pixels=pixels_PD.data_ptr(),
        rows=cpu.pointer("rows", rows),
        excluded=cpu.pointer("exclude_P", excluded_P, torch.int64),
        scores=cpu.pointer("scores", found_PK),
        ids=cpu.pointer("ids", ids_PK, torch.int64),
    )
    kernels.kiloseg_nearest(ctypes.byref(search))
    return found_PK, ids_PK


def _topk_by_groups(scores_PC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Does what `topk` does, but looks at groups first: the K largest scores lie in the K groups with the largest maxima.

    Class c is member c // G of group c % G, so the maximum of each group is found over whole rows of G. Classes beyond the last
    full row are compared at the end.
    """
    C = scores_PC.shape[1]
    G = C // _GROUP
    members_PgG = scores_PC[:, : G * _GROUP].unflatten(1, (_GROUP, G))
    groups_PK = members_PgG.amax(1).topk(count, dim=1, sorted=False).indices
    candidates_PgK = members_PgG.gather(2, groups_PK[:, None].expand(-1, _GROUP, -1))
    rest = scores_PC[:, G * _GROUP :]
    found_PK, places_PK = torch.cat([candidates_PgK.flatten(1), rest], 1).topk(count, dim=1, sorted=False)
    member_PK = places_PK // count
    grouped_PK = member_PK * G + groups_PK.gather(1, places_PK % count)
    beyond_PK = places_PK - _GROUP * count + _GROUP * G
    return found_PK, torch.where(member_PK < _GROUP, grouped_PK, beyond_PK)
