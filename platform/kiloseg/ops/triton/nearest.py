"""Finds the K classes nearest to each pixel on a GPU: score tiles and the best classes so far stay in registers.

The kernel walks over the classes once. In each tile, a pixel looks at its highest score; if that beats the worst of the K that it
holds, the score is taken in and the next one is considered. In random order a pixel takes in about K (1 + ln(C / K)) classes, most
of them in the first tiles. Counted for K = 8 and 64 pixels that look together, in tiles of 32, every score is looked at about 4
times at 1,284 classes, 2.3 times at 10,000 and 1.4 times at 100,000. K rounds for every tile would look 8 times, and a sorting
network (`tl.topk`) about ten, each with exchanges between threads.

Shapes: P pixels, C classes, D embedding, K nearest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kiloseg.ops.triton import MAX_NEAREST
from kiloseg.ops.triton.scores import block_of_pixels, check, load_pieces, load_pixels, pieces, product, tuned, width


def nearest_scores(o_PD: Tensor, rows_CD: Tensor, target_P: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """Finds the K classes with the largest o.e other than the target, in any order: cosines_PK and ids_PK (int64).

    The result is exact up to ties, of which any is taken.

    Args:
        o_PD: the pixels, (P, D), contiguous float32, of unit length.
        rows_CD: the classes, (C, D), likewise.
        target_P: int64, the row that a pixel leaves out; an id that is not a row, such as -1, leaves out none.
        K: the number of classes, 1 to C - 1, and at most MAX_NEAREST.

    Raises:
        ValueError: K is outside that range, or tensors have another type or layout or are on several devices.
    """
    check(o_PD=o_PD, rows_CD=rows_CD, target_P=target_P)
    if not 1 <= K <= min(len(rows_CD) - 1, MAX_NEAREST):
        raise ValueError(
            f"K = {K}: expected 1 to {len(rows_CD) - 1}, the number of other classes, and {MAX_NEAREST} at most"
        )
    P, D = o_PD.shape
    cosines_PK = o_PD.new_empty(P, K)
    ids_PK = torch.empty(P, K, dtype=torch.int64, device=o_PD.device)
    _nearest[lambda meta: (triton.cdiv(P, meta["BLOCK_P"]),)](
        o_PD,
        pieces(rows_CD),
        target_P,
        cosines_PK,
        ids_PK,
        P,
        len(rows_CD),
        len(rows_CD).bit_length(),
        D=D,
        W=width(D),
        K=K,
        SLOTS=triton.next_power_of_2(K),
    )
    return cosines_PK, ids_PK


@triton.jit
def take_in(scores, ids, held, held_ids):
    """Returns the highest of the scores held (pixels, slots) and those of a tile (pixels, ids), and their ids."""
    slots = tl.arange(0, held.shape[1])
    worst = tl.min(held, 1)
    best = tl.max(scores, 1)
    while tl.max((best > worst).to(tl.int32), 0) > 0:
        # Among equal scores the highest id is taken, so each one is taken in separately.
        best_id = tl.max(tl.where(scores == best[:, None], ids[None, :], -1), 1)
        slot = tl.argmin(held, 1)
        taken = (slots[None, :] == slot[:, None]) & (best > worst)[:, None]
        held = tl.where(taken, best[:, None], held)
        held_ids = tl.where(taken, best_id[:, None], held_ids)
        worst = tl.min(held, 1)
        scores = tl.where(ids[None, :] == best_id[:, None], -float("inf"), scores)
        best = tl.max(scores, 1)
    return held, held_ids


@tuned([(64, 32, 4, 2), (64, 64, 4, 2), (64, 128, 4, 2), (128, 32, 8, 2)], key=["magnitude", "W", "K"])
@triton.jit(do_not_specialize=["P", "C", "magnitude"])
def _nearest(
    o_ptr,
    rows_ptr,
    target_ptr,
    cosines_ptr,
    ids_ptr,
    P,
    C,
    magnitude,
    D: tl.constexpr,
    W: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pixels, inside, _, _ = block_of_pixels(P, D, W, BLOCK_P)
    o1, o2, o3, target = load_pixels(o_ptr, target_ptr, P, D, W, BLOCK_P)
    slots = tl.arange(0, SLOTS)
    # Slots beyond K hold infinity, so they are never the worst.
    held = tl.zeros((BLOCK_P, SLOTS), tl.float32) + tl.where(slots < K, -float("inf"), float("inf"))[None, :]
    held_ids = tl.zeros((BLOCK_P, SLOTS), tl.int32)
    for start in range(0, C, BLOCK_C):
        ids = start + tl.arange(0, BLOCK_C)
        e1, e2, e3 = load_pieces(rows_ptr, ids, C, W)
        cosines = product(o1, o2, o3, tl.trans(e1), tl.trans(e2), tl.trans(e3))
        cosines = tl.where((ids[None, :] == target[:, None]) | (ids >= C)[None, :], -float("inf"), cosines)
        held, held_ids = take_in(cosines, ids, held, held_ids)
    place = pixels[:, None] * K + slots[None, :]
    kept = inside[:, None] & (slots < K)[None, :]
    tl.store(cosines_ptr + place, held, mask=kept)
    tl.store(ids_ptr + place, held_ids.to(tl.int64), mask=kept)
