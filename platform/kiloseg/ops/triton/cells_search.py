"""Finds the classes nearest to each pixel on a GPU from scores at feature cells; the best classes so far stay in registers.

Neither the length of a pixel's embedding nor upsampling changes the order of its scores, so a program holds a patch
(`kiloseg.ops.triton.cells`), walks over the classes once, and keeps the K best of upsampled scores as
`kiloseg.ops.triton.nearest` does.

Shapes: b images, H W pixels, N patches of P pixels and k cells, W the power of two that holds D, C classes, K classes sought.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kiloseg.ops.triton.cells import (
    PATCH_PIXELS,
    UNSPECIALIZED,
    Patches,
    load_cells,
    load_interpolation,
    load_pixels_of,
    score_cells,
)
from kiloseg.ops.triton.nearest import take_in
from kiloseg.ops.triton.scores import check, load_pieces, product, tuned

_P = tl.constexpr(PATCH_PIXELS)


def search_patches(
    patches: Patches,
    classes: Tensor,
    ids_bHWK: Tensor,
    cosines_bHWK: Tensor | None,
    *,
    exclude_bHW: Tensor | None = None,
) -> None:
    """Finds the K classes of highest cosine for the pixels of a band, in any order; of equal classes any is taken.

    Args:
        patches: the pixels.
        classes: bfloat16 (3, C, W), `kiloseg.ops.triton.scores.pieces` of the rows, of unit length; C is at least K.
        ids_bHWK: int64, contiguous, where the ids of the classes are written.
        cosines_bHWK: float32, contiguous, where their cosines are written; None if they are not wanted.
        exclude_bHW: int64, contiguous, a class for each pixel that must not be found; C is then at least K + 1.

    Raises:
        ValueError: Tensors have another type or layout, or are on several devices.
    """
    check(ids_bHWK=ids_bHWK, cosines_bHWK=cosines_bHWK, target_excluded=exclude_bHW)
    _, H, image_width, K = ids_bHWK.shape
    _, C, W = classes.shape
    _search[(patches.number,)](
        *patches.arguments(),
        classes,
        exclude_bHW,
        ids_bHWK,
        cosines_bHWK,
        H,
        image_width,
        C,
        C.bit_length(),
        W=W,
        K=K,
        SLOTS=max(triton.next_power_of_2(K), 2),
        COSINES=cosines_bHWK is not None,
        EXCLUDES=exclude_bHW is not None,
    )


@tuned([(128, 64, 4, 2), (128, 64, 8, 2), (128, 128, 8, 2), (128, 32, 4, 2)], key=["magnitude", "W", "K", "EXCLUDES"])
@triton.jit(do_not_specialize=UNSPECIALIZED)
def _search(
    cells_ptr,
    y_starts,
    y_weights,
    x_starts,
    x_weights,
    images,
    band,
    rows,
    columns,
    h,
    w,
    classes_ptr,
    target_ptr,
    ids_ptr,
    cosines_ptr,
    height,
    image_width,
    C,
    magnitude,
    W: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    COSINES: tl.constexpr,
    EXCLUDES: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    patch = tl.program_id(0)
    z1, z2, z3 = load_cells(cells_ptr, y_starts, x_starts, images, band, rows, columns, h, w, patch, W)
    m1, m2, m3 = load_interpolation(y_weights, x_weights, band, rows, columns, patch, 0, BLOCK_P)
    pixels, inside = load_pixels_of(y_starts, x_starts, band, rows, columns, patch, height, image_width)
    excluded = tl.zeros((BLOCK_P,), tl.int32) - 1
    if EXCLUDES:
        excluded = tl.load(target_ptr + pixels, mask=inside, other=-1).to(tl.int32)
    slots = tl.arange(0, SLOTS)
    # Slots beyond K hold infinity, so they are never the worst.
    held = tl.zeros((BLOCK_P, SLOTS), tl.float32) + tl.where(slots < K, -float("inf"), float("inf"))[None, :]
    held_ids = tl.zeros((BLOCK_P, SLOTS), tl.int32)
    for start in range(0, C, BLOCK_C):
        ids = start + tl.arange(0, BLOCK_C)
        e1, e2, e3 = load_pieces(classes_ptr, ids, C, W)
        s1, s2, s3 = score_cells(e1, e2, e3, z1, z2, z3)
        scores = product(m1, m2, m3, tl.trans(s1), tl.trans(s2), tl.trans(s3))
        scores = tl.where((ids >= C)[None, :], -float("inf"), scores)
        if EXCLUDES:
            scores = tl.where(ids[None, :] == excluded[:, None], -float("inf"), scores)
        held, held_ids = take_in(scores, ids, held, held_ids)
    if COSINES:
        u = product(m1, m2, m3, z1, z2, z3)
        held *= (1.0 / tl.maximum(tl.sqrt(tl.sum(u * u, 1)), 1e-12))[:, None]
    place = pixels[:, None] * K + slots[None, :]
    kept = inside[:, None] & (slots < K)[None, :]
    if COSINES:
        tl.store(cosines_ptr + place, held, mask=kept)
    tl.store(ids_ptr + place, held_ids.to(tl.int64), mask=kept)
