"""Search for the classes nearest to pixels.

Shapes: P pixels, D embedding, C classes, K classes sought, G groups of classes.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kiloseg.ops import cpu
from kiloseg.ops.tiles import tile_pixels, tiles

GROUPED_FROM = 4096
"""Classes from which on the search goes by groups. 8 of 1,284 took 1.0 ms for 512 pixels either way; of 10,000 4.9 ms
directly and 2.6 ms by groups; of 100,000, 20 pixels, 1.9 and 0.55 ms (two cores)."""

_GROUP = 16
"""Classes in a group; 8 to 32 differ little, and the more classes the larger it may be."""


def nearest_classes(
    pixels_PD: Tensor,
    rows_DC: Tensor,
    count: int,
    *,
    exclude_P: Tensor | None = None,
    tile_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The `count` classes of largest dot product with each pixel, in no particular order; exact.

    For unit vectors these are the nearest: ||o - e||^2 = 2 - 2 o.e. On a CPU, in float32 and for up to 64 of them, by a
    compiled kernel (`kiloseg.ops.cpu`), which holds no matrix of scores.

    Args:
        pixels_PD: pixel embeddings; their lengths do not change what is found.
        rows_DC: rows of the class table, unit vectors, as the columns of a contiguous matrix.
        count: K, 1 to C, or to C - 1 where classes are excluded.
        exclude_P: a class of each pixel, int64, that must not be found.
        tile_bytes: size aimed at for the one matrix of scores that lives at a time; None for kiloseg.ops.tiles.TILE_BYTES.

    Returns:
        Dot products (P, K) and class ids, int64 (P, K).
    """
    P, C = len(pixels_PD), rows_DC.shape[1]
    if _cpu_kernel_supports(pixels_PD, rows_DC, count):
        return _search_by_cpu_kernel(pixels_PD, rows_DC, count, exclude_P)
    found_PK = pixels_PD.new_empty((P, count))
    ids_PK = torch.empty((P, count), dtype=torch.int64, device=pixels_PD.device)
    size = tile_pixels(C, pixels_PD, tile_bytes)
    # One buffer for all tiles: fresh memory of this size costs more in page faults than the product itself.
    scores = pixels_PD.new_empty(min(size, P) * C)
    for tile in tiles(P, size):
        num = tile.stop - tile.start
        scores_PC = torch.mm(pixels_PD[tile], rows_DC, out=scores[: num * C].view(num, C))
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
    """`struct nearest` of ops/cpu/nearest.c."""

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
    """`topk` that looks at groups first: the K largest scores lie in the K groups whose largest scores are the largest.

    Class c is member c // G of group c % G, so that the largest of each group is found by whole rows of G; classes
    beyond the last full row are compared at the end.
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
