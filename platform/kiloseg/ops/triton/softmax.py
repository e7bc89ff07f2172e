"""Computes the softmax over every class on a GPU: score tiles stay in registers and are recomputed for the table's gradient.

There are two kernels, as in flash attention: one holds its pixels and walks over the classes, the other holds its classes and
walks over the pixels. They read and write P x D and C x D values in memory, never P x C. `kiloseg.losses.reference` computes the
same softmax in tiles that go through memory; it is the reference.

Shapes: P pixels, C classes, D embedding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kiloseg.ops.logits import LOG2E, MIN_SQUARED_DISTANCE, SAFE_EXPONENT
from kiloseg.ops.triton.scores import (
    FAR,
    block_of_pixels,
    check,
    load_pieces,
    load_pixels,
    logits_of,
    num_shares,
    pieces,
    product,
    split,
    tuned,
    width,
)


def softmax_sums(
    o_PD: Tensor,
    rows_CD: Tensor,
    target_P: Tensor,
    temperature: float,
    *,
    cosine: bool,
    floor_P: Tensor | None = None,
    wants_row_sums: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Computes sums over every class but the target of w = exp2(z - top), and of w times the class's row.

    z is tau log2(e) (o.e - 1) with cosine logits and -tau log2(e) ||o - e|| with distances. Vectors have unit length, so z is at
    least -2 tau log2(e), and a maximum is needed only for tau above 40.

    Args:
        o_PD: the pixels, (P, D), contiguous float32, of unit length.
        rows_CD: the classes, (C, D), likewise.
        target_P: int64, the row that a pixel leaves out; an id that is not a row, such as -1, leaves out none.
        temperature: the factor tau.
        cosine: whether logits are cosines; otherwise they are distances.
        floor_P: the smallest allowed value of `top`: the target's own logit.
        wants_row_sums: whether to compute the second sum.

    Returns:
        sums_P; row_sums_PD, the sum of w e, or with distance logits that of w / (tau log2(e) ||o - e||) e (None unless wanted);
        top_P, the largest z or floor of each pixel if tau is above 40, and otherwise None, which means 0.

    Raises:
        ValueError: Tensors have another type or layout, or are on several devices.
    """
    online = 2 * temperature > SAFE_EXPONENT
    P, D = o_PD.shape
    floor_P = o_PD.new_full((P,), -FAR.value) if online and floor_P is None else floor_P
    check(o_PD=o_PD, rows_CD=rows_CD, target_P=target_P, floor_P=floor_P)
    sums_P = o_PD.new_empty(P)
    row_sums_PD = torch.empty_like(o_PD) if wants_row_sums else None
    top_P = torch.empty_like(sums_P) if online else None
    _sums[lambda meta: (triton.cdiv(P, meta["BLOCK_P"]),)](
        o_PD,
        pieces(rows_CD),
        target_P,
        floor_P,
        sums_P,
        row_sums_PD,
        top_P,
        P,
        len(rows_CD),
        len(rows_CD).bit_length(),
        temperature * LOG2E,
        MIN_SQUARED_DISTANCE,
        D=D,
        W=width(D),
        COSINE=cosine,
        ONLINE=online,
        ROW_SUMS=wants_row_sums,
    )
    return sums_P, row_sums_PD, top_P


def softmax_table_gradient(
    o_PD: Tensor,
    rows_CD: Tensor,
    target_P: Tensor,
    factor_P: Tensor,
    top_P: Tensor | None,
    temperature: float,
    *,
    cosine: bool,
) -> Tensor:
    """Computes the sum over pixels of f w o for every class, with distance logits of f w / (tau log2(e) ||o - e||) o: (C, D).

    The weights w are those of `softmax_sums`, relative to the same `top_P`, and so are the arguments. `factor_P` holds f, a
    pixel's factor, which is 0 for pixels that do not count. The order of sums is fixed, so equal input gives equal bits.
    """
    check(o_PD=o_PD, rows_CD=rows_CD, target_P=target_P, factor_P=factor_P, top_P=top_P)
    P, D = o_PD.shape
    C = len(rows_CD)
    shares = num_shares(C, triton.cdiv(P, 128), o_PD.device)
    grad_SCD = o_PD.new_empty(shares, C, D)
    _table_gradient[lambda meta: (triton.cdiv(C, meta["BLOCK_C"]), shares)](
        pieces(o_PD),
        pieces(rows_CD),
        target_P,
        factor_P,
        top_P,
        grad_SCD,
        P,
        C,
        C.bit_length(),
        temperature * LOG2E,
        MIN_SQUARED_DISTANCE,
        D=D,
        W=width(D),
        COSINE=cosine,
        ONLINE=top_P is not None,
    )
    return grad_SCD.sum(0) if shares > 1 else grad_SCD[0]


@tuned(
    [(64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 3), (128, 64, 8, 2), (128, 32, 8, 3)],
    key=["magnitude", "W", "COSINE", "ONLINE", "ROW_SUMS"],
)
@triton.jit(do_not_specialize=["P", "C", "magnitude"])
def _sums(
    o_ptr,
    rows_ptr,
    target_ptr,
    floor_ptr,
    sums_ptr,
    row_sums_ptr,
    top_ptr,
    P,
    C,
    magnitude,
    factor,
    least,
    D: tl.constexpr,
    W: tl.constexpr,
    COSINE: tl.constexpr,
    ONLINE: tl.constexpr,
    ROW_SUMS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pixels, inside, place, filled = block_of_pixels(P, D, W, BLOCK_P)
    o1, o2, o3, target = load_pixels(o_ptr, target_ptr, P, D, W, BLOCK_P)
    sums = tl.zeros((BLOCK_P,), tl.float32)
    row_sums = tl.zeros((BLOCK_P, W), tl.float32)
    top = tl.zeros((BLOCK_P,), tl.float32)
    if ONLINE:
        top = tl.load(floor_ptr + pixels, mask=inside, other=0.0)
    for start in range(0, C, BLOCK_C):
        ids = start + tl.arange(0, BLOCK_C)
        e1, e2, e3 = load_pieces(rows_ptr, ids, C, W)
        cosines = product(o1, o2, o3, tl.trans(e1), tl.trans(e2), tl.trans(e3))
        excluded = ids[None, :] == target[:, None]
        logits, inverse = logits_of(cosines, (ids >= C)[None, :], excluded, factor, least, COSINE)
        if ONLINE:
            higher = tl.maximum(top, tl.max(logits, 1))
            shrink = tl.exp2(top - higher)
            top = higher
            sums *= shrink
            row_sums *= shrink[:, None]
            logits -= top[:, None]
        weight = tl.exp2(logits)
        sums += tl.sum(weight, 1)
        if ROW_SUMS:
            w1, w2, w3 = split(weight * inverse, ROUND=False)
            # This is added outside the product, whose accumulator truncates where float32 addition rounds.
            row_sums += product(w1, w2, w3, e1, e2, e3)
    tl.store(sums_ptr + pixels, sums, mask=inside)
    if ROW_SUMS:
        tl.store(row_sums_ptr + place, row_sums, mask=filled)
    if ONLINE:
        tl.store(top_ptr + pixels, top, mask=inside)


@tuned([(64, 64, 4, 3), (64, 64, 4, 2), (32, 64, 4, 3), (64, 128, 8, 2)], key=["magnitude", "W", "COSINE", "ONLINE"])
@triton.jit(do_not_specialize=["P", "C", "magnitude"])
def _table_gradient(
    o_ptr,
    rows_ptr,
    target_ptr,
    factor_ptr,
    top_ptr,
    grad_ptr,
    P,
    C,
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
    ids = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    share, num_shares = tl.program_id(1), tl.num_programs(1)
    e1, e2, e3 = load_pieces(rows_ptr, ids, C, W)
    grad = tl.zeros((BLOCK_C, W), tl.float32)
    for start in range(share * BLOCK_P, P, num_shares * BLOCK_P):
        pixels = start + tl.arange(0, BLOCK_P)
        inside = pixels < P
        o1, o2, o3 = load_pieces(o_ptr, pixels, P, W)
        target = tl.load(target_ptr + pixels, mask=inside, other=-1).to(tl.int32)
        pixel_factor = tl.load(factor_ptr + pixels, mask=inside, other=0.0)
        cosines = product(e1, e2, e3, tl.trans(o1), tl.trans(o2), tl.trans(o3))
        # Classes beyond the last are zeros and are not written.
        logits, inverse = logits_of(cosines, False, ids[:, None] == target[None, :], factor, least, COSINE)
        if ONLINE:
            logits -= tl.load(top_ptr + pixels, mask=inside, other=0.0)[None, :]
        w1, w2, w3 = split(tl.exp2(logits) * inverse * pixel_factor[None, :], ROUND=False)
        grad += product(w1, w2, w3, o1, o2, o3)
    place = (share.to(tl.int64) * C + ids)[:, None] * D + tl.arange(0, W)[None, :]
    tl.store(grad_ptr + place, grad, mask=(ids < C)[:, None] & (tl.arange(0, W) < D)[None, :])
