"""Computes weighted sums of the K rows that each pixel names, and their gradients, without P x K x D intermediate vectors.

Shapes: P pixels, C classes, D embedding, K rows named by a pixel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kiloseg.ops.triton.scores import block_of_pixels, check

_BLOCK_P = 64


def weighted_rows(weight_PK: Tensor, rows_CD: Tensor, ids_PK: Tensor) -> Tensor:
    """Computes the sum over k of weight_pk rows_CD[ids_pk]: (P, D). Weights and rows are contiguous float32; ids are int64 and
    valid rows.

    Raises:
        ValueError: Tensors have another type or layout, or are on several devices.
    """
    check(weight_PK=weight_PK, rows_CD=rows_CD, ids_PK=ids_PK)
    P, K = ids_PK.shape
    D = rows_CD.shape[1]
    sums_PD = weight_PK.new_empty(P, D)
    _gather[(triton.cdiv(P, _BLOCK_P),)](
        weight_PK, rows_CD, ids_PK, sums_PD, P, D=D, W=triton.next_power_of_2(D), K=K, BLOCK_P=_BLOCK_P
    )
    return sums_PD


def add_weighted_rows(grad_CD: Tensor, weight_PK: Tensor, vectors_PD: Tensor, ids_PK: Tensor) -> None:
    """Adds weight_pk vectors_PD[p] to row ids_pk of grad_CD, for all p and k.

    Neighboring pixels mostly name the same rows, and a GPU serializes additions to one address. So a program first sums over its
    pixels, then adds once for each row that they name. The order of these additions, and with it the last bits, change from run to
    run, as with `index_add_` on a GPU.

    Raises:
        ValueError: Tensors have another type or layout, or are on several devices.
    """
    check(grad_CD=grad_CD, weight_PK=weight_PK, vectors_PD=vectors_PD, ids_PK=ids_PK)
    P, K = ids_PK.shape
    D = grad_CD.shape[1]
    _scatter[(triton.cdiv(P, _BLOCK_P),)](
        grad_CD,
        weight_PK,
        vectors_PD,
        ids_PK,
        P,
        D=D,
        W=triton.next_power_of_2(D),
        K=K,
        SLOTS=triton.next_power_of_2(K),
        BLOCK_P=_BLOCK_P,
    )


@triton.jit(do_not_specialize=["P"])
def _gather(
    weight_ptr,
    rows_ptr,
    ids_ptr,
    sums_ptr,
    P,
    D: tl.constexpr,
    W: tl.constexpr,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    pixels, inside, place, filled = block_of_pixels(P, D, W, BLOCK_P)
    dims = tl.arange(0, W)
    sums = tl.zeros((BLOCK_P, W), tl.float32)
    for k in range(K):
        weight = tl.load(weight_ptr + pixels * K + k, mask=inside, other=0.0)
        ids = tl.load(ids_ptr + pixels * K + k, mask=inside, other=0)
        sums += weight[:, None] * tl.load(rows_ptr + ids[:, None] * D + dims[None, :], mask=filled, other=0.0)
    tl.store(sums_ptr + place, sums, mask=filled)


@triton.jit(do_not_specialize=["P"])
def _scatter(
    grad_ptr,
    weight_ptr,
    vectors_ptr,
    ids_ptr,
    P,
    D: tl.constexpr,
    W: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    pixels, inside, vector_place, filled = block_of_pixels(P, D, W, BLOCK_P)
    dims = tl.arange(0, W)
    slots = tl.arange(0, SLOTS)
    vectors = tl.load(vectors_ptr + vector_place, mask=filled, other=0.0)
    named = inside[:, None] & (slots < K)[None, :]
    place = pixels[:, None] * K + slots[None, :]
    weight = tl.load(weight_ptr + place, mask=named, other=0.0)
    # This adds what is left; ignored pixels have weights of 0.
    ids = tl.where(weight != 0.0, tl.load(ids_ptr + place, mask=named, other=-1), -1)
    row = tl.max(tl.max(ids, 1), 0)
    while row >= 0:
        share = tl.sum(tl.where(ids == row, weight, 0.0), 1)
        tl.atomic_add(grad_ptr + row * D + dims, tl.sum(share[:, None] * vectors, 0), mask=dims < D, sem="relaxed")
        ids = tl.where(ids == row, -1, ids)
        row = tl.max(tl.max(ids, 1), 0)
