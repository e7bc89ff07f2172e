"""Computes the softmax over shared candidates on a GPU from scores at feature cells: sums of exponentials.

A program holds a patch (`kiloseg.ops.triton.cells`) and walks over the candidates. Memory holds a few numbers for each pixel of a
band of patches, never scores. `kiloseg.losses.reference_cells` computes the same with torch's operations; it is the reference.

Shapes: N patches of P pixels and k cells, W the power of two that holds D, S candidates.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kiloseg.ops.logits import LOG2E, MIN_SQUARED_DISTANCE, SAFE_EXPONENT
from kiloseg.ops.triton.cells import UNSPECIALIZED, Patches, load_cells, load_interpolation, score_cells
from kiloseg.ops.triton.cells_targets import Targets
from kiloseg.ops.triton.scores import load_pieces, logits_of, product, tuned


def cells_softmax_sums(
    patches: Patches, candidates: Tensor, targets: Targets, temperature: float, *, cosine: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Computes sums over every candidate but the one left out of w = exp2(z - top), and of w times slope times cosine.

    Args:
        patches: the pixels.
        candidates: bfloat16 (3, S, W), `kiloseg.ops.triton.scores.pieces` of their rows.
        targets: what `score_targets` returned; its logit is the smallest allowed value of `top`.
        temperature: the factor tau.
        cosine: whether logits are cosines; otherwise they are distances.

    Returns:
        sums_NP, dots_NP, and top_NP, the largest logit of each pixel if tau is above 40, and otherwise None, which means 0.
    """
    online = 2 * temperature > SAFE_EXPONENT
    sums_NP, dots_NP = torch.empty_like(targets.logit), torch.empty_like(targets.logit)
    top_NP = torch.empty_like(sums_NP) if online else None
    _, S, W = candidates.shape
    _sums[(patches.number,)](
        *patches.arguments(),
        candidates,
        targets.inverse,
        targets.logit,
        targets.left_out,
        sums_NP,
        dots_NP,
        top_NP,
        S,
        S.bit_length(),
        temperature * LOG2E,
        MIN_SQUARED_DISTANCE,
        W=W,
        COSINE=cosine,
        ONLINE=online,
    )
    return sums_NP, dots_NP, top_NP


@tuned([(128, 64, 4, 3), (128, 64, 4, 2), (128, 64, 8, 2), (128, 32, 4, 2)], key=["magnitude", "W", "COSINE", "ONLINE"])
@triton.jit(do_not_specialize=UNSPECIALIZED)
def _sums(
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
    candidates_ptr,
    inverse_ptr,
    floor_ptr,
    left_out_ptr,
    sums_ptr,
    dots_ptr,
    top_ptr,
    S,
    magnitude,
    factor,
    least,
    W: tl.constexpr,
    COSINE: tl.constexpr,
    ONLINE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    patch = tl.program_id(0)
    z1, z2, z3 = load_cells(cells_ptr, y_starts, x_starts, images, band, rows, columns, h, w, patch, W)
    m1, m2, m3 = load_interpolation(y_weights, x_weights, band, rows, columns, patch, 0, BLOCK_P)
    slots = patch.to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inverse = tl.load(inverse_ptr + slots)
    left_out = tl.load(left_out_ptr + slots)
    sums = tl.zeros((BLOCK_P,), tl.float32)
    dots = tl.zeros((BLOCK_P,), tl.float32)
    top = tl.zeros((BLOCK_P,), tl.float32)
    if ONLINE:
        top = tl.load(floor_ptr + slots)
    for start in range(0, S, BLOCK_C):
        ids = start + tl.arange(0, BLOCK_C)
        e1, e2, e3 = load_pieces(candidates_ptr, ids, S, W)
        s1, s2, s3 = score_cells(e1, e2, e3, z1, z2, z3)
        cosines = product(m1, m2, m3, tl.trans(s1), tl.trans(s2), tl.trans(s3)) * inverse[:, None]
        excluded = ids[None, :] == left_out[:, None]
        logits, slope = logits_of(cosines, (ids >= S)[None, :], excluded, factor, least, COSINE)
        if ONLINE:
            higher = tl.maximum(top, tl.max(logits, 1))
            shrink = tl.exp2(top - higher)
            top = higher
            sums *= shrink
            dots *= shrink
            logits -= top[:, None]
        weight = tl.exp2(logits)
        sums += tl.sum(weight, 1)
        dots += tl.sum(weight * slope * cosines, 1)
    tl.store(sums_ptr + slots, sums)
    tl.store(dots_ptr + slots, dots)
    if ONLINE:
        tl.store(top_ptr + slots, top)
