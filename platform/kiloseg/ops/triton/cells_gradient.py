"""Computes the gradients of cells and candidates on a GPU: weights are narrowed to the cells before they meet table and cells.

Both kernels compute a tile of weights again from scores at cells, candidates by pixels, and multiply it with the patch's matrix of
interpolation. What is left, candidates by cells, is an eighth as large. One kernel holds a patch and walks over the candidates, the
other holds candidates and walks over the patches. Every sum has a fixed order, so equal input gives equal bits.

Shapes: N patches of P pixels and k cells, D embedding, W the power of two that holds D, S candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from kiloseg.ops.logits import LOG2E, MIN_SQUARED_DISTANCE
from kiloseg.ops.triton.cells import (
    PATCH_CELLS,
    PATCH_PIXELS,
    UNSPECIALIZED,
    Patches,
    load_cells,
    load_interpolation,
    score_cells,
)
from kiloseg.ops.triton.scores import load_pieces, logits_of, num_shares, product, split, tuned

_CELLS = tl.constexpr(PATCH_CELLS)
_HALF = tl.constexpr(PATCH_PIXELS // 2)
"""A tile of weights has half of the pixels, so that the three pieces of it and of its factors stay in registers."""


class Weights(NamedTuple):
    """Holds what turns scores of the pixels of a band into weights of their gradients, each float32 (N, P)."""

    inverse: Tensor
    """1 / length of the embedding."""
    left_out: Tensor
    """int32, the candidate that is left out of the sums."""
    top: Tensor | None
    """The logit that sums are relative to; None means 0."""
    factor: Tensor
    """The factor of a pixel's weights, which contains 1 / length; 0 for pixels that do not count."""
    own: Tensor
    """The weight of the candidate that is left out, before `factor`: minus the others' sum where it is the pixel's own class."""


def cells_gradient(
    patches: Patches,
    candidates: Tensor,
    weights: Weights,
    temperature: float,
    D: int,
    *,
    cosine: bool,
) -> Tensor:
    """Computes the candidates' part of the gradient of the cells of every patch, with what normalization removes: (N, k, D).

    Args:
        patches: the pixels.
        candidates: bfloat16 (3, S, W), `kiloseg.ops.triton.scores.pieces` of their rows.
        weights: those of the pixels.
        temperature: the factor tau.
        D: the number of dimensions.
        cosine: whether logits are cosines; otherwise they are distances.
    """
    grad_NkD = weights.factor.new_empty(patches.number, PATCH_CELLS, D)
    _, S, W = candidates.shape
    _cells_gradient[(patches.number,)](
        *patches.arguments(),
        candidates,
        *weights,
        grad_NkD,
        S,
        S.bit_length(),
        temperature * LOG2E,
        MIN_SQUARED_DISTANCE,
        D=D,
        W=W,
        COSINE=cosine,
        ONLINE=weights.top is not None,
    )
    return grad_NkD


def candidates_gradient(
    patches: Patches, candidates: Tensor, weights: Weights, temperature: float, D: int, *, cosine: bool
) -> Tensor:
    """Computes the gradient of every candidate, (S, D); the arguments are those of `cells_gradient`."""
    _, S, W = candidates.shape
    shares = num_shares(S, patches.number, candidates.device)
    grad_sSD = weights.factor.new_empty(shares, S, D)
    _candidates_gradient[lambda meta: (triton.cdiv(S, meta["BLOCK_C"]), shares)](
        *patches.arguments(),
        candidates,
        *weights,
        grad_sSD,
        S,
        S.bit_length(),
        patches.number,
        temperature * LOG2E,
        MIN_SQUARED_DISTANCE,
        D=D,
        W=W,
        COSINE=cosine,
        ONLINE=weights.top is not None,
    )
    return grad_sSD.sum(0) if shares > 1 else grad_sSD[0]


@triton.jit
def _narrow(
    s1, s2, s3, m1, m2, m3, ids, S, slots,
    inverse_ptr, left_out_ptr, top_ptr, factor_ptr, own_ptr, factor, least, COSINE: tl.constexpr, ONLINE: tl.constexpr,
):  # fmt: skip
    """Returns the weights of candidates and cells (candidates, k) of some pixels, from scores of the cells in three pieces."""
    cosines = product(s1, s2, s3, tl.trans(m1), tl.trans(m2), tl.trans(m3)) * tl.load(inverse_ptr + slots)[None, :]
    logits, slope = logits_of(cosines, (ids >= S)[:, None], False, factor, least, COSINE)
    if ONLINE:
        logits -= tl.load(top_ptr + slots)[None, :]
    own = ids[:, None] == tl.load(left_out_ptr + slots)[None, :]
    weight = tl.where(own, tl.load(own_ptr + slots)[None, :], tl.exp2(logits) * slope)
    w1, w2, w3 = split(weight * tl.load(factor_ptr + slots)[None, :], ROUND=False)
    return product(w1, w2, w3, m1, m2, m3)


@triton.jit
def _narrow_halves(
    s1, s2, s3, m1, m2, m3, l1, l2, l3, ids, S, slots,
    inverse_ptr, left_out_ptr, top_ptr, factor_ptr, own_ptr, factor, least, COSINE: tl.constexpr, ONLINE: tl.constexpr,
):  # fmt: skip
    """Returns the weights of candidates and cells of a patch in three pieces; `slots` are those of its first half."""
    narrowed = _narrow(
        s1, s2, s3, m1, m2, m3, ids, S, slots,
        inverse_ptr, left_out_ptr, top_ptr, factor_ptr, own_ptr, factor, least, COSINE, ONLINE,
    )  # fmt: skip
    narrowed += _narrow(
        s1, s2, s3, l1, l2, l3, ids, S, slots + _HALF,
        inverse_ptr, left_out_ptr, top_ptr, factor_ptr, own_ptr, factor, least, COSINE, ONLINE,
    )  # fmt: skip
    return split(narrowed, ROUND=True)


@tuned([(128, 64, 4, 2), (128, 64, 8, 2), (128, 32, 4, 2)], key=["magnitude", "W", "COSINE", "ONLINE"])
@triton.jit(do_not_specialize=UNSPECIALIZED)
def _cells_gradient(
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
    left_out_ptr,
    top_ptr,
    factor_ptr,
    own_ptr,
    grad_ptr,
    S,
    magnitude,
    factor,
    least,
    D: tl.constexpr,
    W: tl.constexpr,
    COSINE: tl.constexpr,
    ONLINE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    patch = tl.program_id(0)
    z1, z2, z3 = load_cells(cells_ptr, y_starts, x_starts, images, band, rows, columns, h, w, patch, W)
    m1, m2, m3 = load_interpolation(y_weights, x_weights, band, rows, columns, patch, 0, _HALF)
    l1, l2, l3 = load_interpolation(y_weights, x_weights, band, rows, columns, patch, _HALF, _HALF)
    slots = patch.to(tl.int64) * BLOCK_P + tl.arange(0, _HALF)
    # Dimensions are the rows of this product, because a GPU multiplies 64 rows at a time.
    grad = tl.zeros((W, _CELLS), tl.float32)
    for start in range(0, S, BLOCK_C):
        ids = start + tl.arange(0, BLOCK_C)
        e1, e2, e3 = load_pieces(candidates_ptr, ids, S, W)
        s1, s2, s3 = score_cells(e1, e2, e3, z1, z2, z3)
        n1, n2, n3 = _narrow_halves(
            s1, s2, s3, m1, m2, m3, l1, l2, l3, ids, S, slots,
            inverse_ptr, left_out_ptr, top_ptr, factor_ptr, own_ptr, factor, least, COSINE, ONLINE,
        )  # fmt: skip
        grad += product(tl.trans(e1), tl.trans(e2), tl.trans(e3), n1, n2, n3)
    dims, cells = tl.arange(0, W), tl.arange(0, _CELLS)
    place = (patch.to(tl.int64) * _CELLS + cells)[None, :] * D + dims[:, None]
    tl.store(grad_ptr + place, grad, mask=(dims < D)[:, None] & (cells >= 0)[None, :])


@tuned([(128, 64, 4, 2), (128, 64, 8, 2), (128, 32, 4, 2)], key=["magnitude", "W", "COSINE", "ONLINE"])
@triton.jit(do_not_specialize=UNSPECIALIZED)
def _candidates_gradient(
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
    left_out_ptr,
    top_ptr,
    factor_ptr,
    own_ptr,
    grad_ptr,
    S,
    magnitude,
    N,
    factor,
    least,
    D: tl.constexpr,
    W: tl.constexpr,
    COSINE: tl.constexpr,
    ONLINE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    ids = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    share, num_shares = tl.program_id(1), tl.num_programs(1)
    e1, e2, e3 = load_pieces(candidates_ptr, ids, S, W)
    grad = tl.zeros((BLOCK_C, W), tl.float32)
    for patch in range(share, N, num_shares):
        z1, z2, z3 = load_cells(cells_ptr, y_starts, x_starts, images, band, rows, columns, h, w, patch, W)
        m1, m2, m3 = load_interpolation(y_weights, x_weights, band, rows, columns, patch, 0, _HALF)
        l1, l2, l3 = load_interpolation(y_weights, x_weights, band, rows, columns, patch, _HALF, _HALF)
        slots = patch * BLOCK_P + tl.arange(0, _HALF)
        s1, s2, s3 = score_cells(e1, e2, e3, z1, z2, z3)
        n1, n2, n3 = _narrow_halves(
            s1, s2, s3, m1, m2, m3, l1, l2, l3, ids, S, slots,
            inverse_ptr, left_out_ptr, top_ptr, factor_ptr, own_ptr, factor, least, COSINE, ONLINE,
        )  # fmt: skip
        grad += product(n1, n2, n3, z1, z2, z3)
    place = (share.to(tl.int64) * S + ids)[:, None] * D + tl.arange(0, W)[None, :]
    tl.store(grad_ptr + place, grad, mask=(ids < S)[:, None] & (tl.arange(0, W) < D)[None, :])
