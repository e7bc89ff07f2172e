"""Computes on a GPU what scores of candidates do not give: lengths, logits of the pixels' own classes, and their gradients.

A program holds a patch (`kiloseg.ops.triton.cells`), upsamples its embeddings, and reads the row of each pixel's own class.

Shapes: N patches of P pixels and k cells, D embedding, W the power of two that holds D, C classes, S candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
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
    load_pixels_of,
)
from kiloseg.ops.triton.scores import check, product, split, width

_P = tl.constexpr(PATCH_PIXELS)
_CELLS = tl.constexpr(PATCH_CELLS)
_EXACT = tl.constexpr(8 * torch.finfo(torch.float32).eps)
"""Where cells cancel each other, as opposite ones do halfway, a score is only as exact as those of the cells."""


class Targets(NamedTuple):
    """Holds what is known of the pixels of a band before they are compared with candidates, each (N, P); 0 in empty slots."""

    inverse: Tensor
    """1 / length of the embedding."""
    logit: Tensor
    """The logit of the pixel's own class to base 2, at most 0 as in `logits_of`."""
    slope: Tensor
    """1 / (tau log2(e) distance) to its own class; 1 with cosine logits."""
    cosine: Tensor
    """The cosine with its own class."""
    weight: Tensor
    """The share of the pixel in the loss."""
    left_out: Tensor
    """int32, the candidate that the pixel is not compared with."""
    outside: Tensor
    """int32, 1 if the pixel's own class is no candidate."""


def score_targets(
    patches: Patches,
    rows_CD: Tensor,
    labels_bHW: Tensor,
    weight_bHW: Tensor,
    columns_C: Tensor | None,
    drawn_S: Tensor | None,
    temperature: float,
    *,
    cosine: bool,
) -> Targets:
    """Computes lengths of pixels and the logits of their own classes, from the vectors themselves.

    A target is the one class whose distance goes to 0, where 2 - 2 o.e has no digits left.

    Args:
        patches: the pixels.
        rows_CD: the table, contiguous float32, rows of unit length.
        labels_bHW: int64, contiguous; any class where the weight is 0.
        weight_bHW: float32, contiguous, the share of each pixel in the loss.
        columns_C: int64, the candidate that pixels of each class leave out; None if candidates are all classes.
        drawn_S: int64, the classes that candidates are; None if they are all classes.
        temperature: the factor tau.
        cosine: whether logits are cosines; otherwise they are distances.

    Raises:
        ValueError: Tensors have another type or layout, or are on several devices.
    """
    check(rows_CD=rows_CD, target_labels=labels_bHW, weight=weight_bHW, ids_columns=columns_C, ids_drawn=drawn_S)
    D, (_, H, image_width) = rows_CD.shape[1], labels_bHW.shape
    shape = (patches.number, PATCH_PIXELS)
    floats = [rows_CD.new_empty(shape) for _ in range(5)]
    integers = [rows_CD.new_empty(shape, dtype=torch.int32) for _ in range(2)]
    targets = Targets(*floats, *integers)
    _score_targets[(patches.number,)](
        *patches.arguments(),
        rows_CD,
        labels_bHW,
        weight_bHW,
        columns_C,
        drawn_S,
        *targets,
        H,
        image_width,
        temperature * LOG2E,
        MIN_SQUARED_DISTANCE,
        D=D,
        W=width(D),
        COSINE=cosine,
        DRAWN=drawn_S is not None,
        num_warps=8,
    )
    return targets


def add_pixel_gradients(
    grad_NkD: Tensor,
    grad_CD: Tensor,
    patches: Patches,
    rows_CD: Tensor,
    labels_bHW: Tensor,
    radial_NP: Tensor,
    outside_NP: Tensor | None,
) -> None:
    """Adds what does not come from candidates: the part along the embedding, and targets that are no candidates.

    A program adds once for each such target of its patch. The order of these additions to the table, and with it the last bits,
    change from run to run, as in `kiloseg.ops.triton.rows.add_weighted_rows`; without them, equal input gives equal bits.

    Args:
        grad_NkD: the gradient of the cells of each patch, which is added to.
        grad_CD: the gradient of the table, which is added to.
        patches: the pixels.
        rows_CD: the table, contiguous float32, rows of unit length.
        labels_bHW: int64, contiguous.
        radial_NP: the factor of the embedding in its own gradient.
        outside_NP: the derivative by the cosine of pixel and target over the pixel's length, 0 where the target is a candidate;
            None if all targets are candidates.
    """
    check(
        grad_NkD=grad_NkD,
        grad_CD=grad_CD,
        rows_CD=rows_CD,
        target_labels=labels_bHW,
        radial=radial_NP,
        outside=outside_NP,
    )
    D, (_, H, image_width) = rows_CD.shape[1], labels_bHW.shape
    _add_pixel_gradients[(patches.number,)](
        *patches.arguments(),
        rows_CD,
        labels_bHW,
        radial_NP,
        outside_NP,
        grad_NkD,
        grad_CD,
        H,
        image_width,
        D=D,
        W=width(D),
        OUTSIDE=outside_NP is not None,
        num_warps=8,
    )


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _score_targets(
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
    rows_ptr,
    labels_ptr,
    weight_ptr,
    columns_ptr,
    drawn_ptr,
    inverse_ptr,
    logit_ptr,
    slope_ptr,
    cosine_ptr,
    pixel_weight_ptr,
    left_out_ptr,
    outside_ptr,
    height,
    image_width,
    factor,
    least,
    D: tl.constexpr,
    W: tl.constexpr,
    COSINE: tl.constexpr,
    DRAWN: tl.constexpr,
):
    patch = tl.program_id(0)
    z1, z2, z3 = load_cells(cells_ptr, y_starts, x_starts, images, band, rows, columns, h, w, patch, W)
    m1, m2, m3 = load_interpolation(y_weights, x_weights, band, rows, columns, patch, 0, _P)
    place, inside = load_pixels_of(y_starts, x_starts, band, rows, columns, patch, height, image_width)
    weight = tl.load(weight_ptr + place, mask=inside, other=0.0)
    target = tl.load(labels_ptr + place, mask=inside & (weight != 0.0), other=0)
    left_out = target
    outside = (target < 0).to(tl.int32)
    if DRAWN:
        left_out = tl.load(columns_ptr + target)
        outside = (tl.load(drawn_ptr + left_out) != target).to(tl.int32)
    o = product(m1, m2, m3, z1, z2, z3)
    z = z1.to(tl.float32) + z2.to(tl.float32) + z3.to(tl.float32)
    shares = m1.to(tl.float32) + m2.to(tl.float32) + m3.to(tl.float32)
    exact = tl.sum(shares * tl.sqrt(tl.sum(z * z, 1))[None, :], 1) * _EXACT
    inverse = 1.0 / tl.maximum(tl.maximum(tl.sqrt(tl.sum(o * o, 1)), exact), 1e-12)
    o *= inverse[:, None]
    dims = tl.arange(0, W)
    e = tl.load(rows_ptr + target[:, None] * D + dims[None, :], mask=(dims < D)[None, :], other=0.0)
    slope = tl.zeros((_P,), tl.float32) + 1.0
    if COSINE:
        cosine = tl.sum(o * e, 1)
        logit = cosine * factor - factor
    else:
        squared = tl.sum((o - e) * (o - e), 1)
        cosine = 1.0 - 0.5 * squared
        logit = -factor * tl.sqrt(squared)
        slope = 1.0 / (factor * tl.sqrt(tl.maximum(squared, least)))
    slots = patch.to(tl.int64) * _P + tl.arange(0, _P)
    tl.store(inverse_ptr + slots, inverse)
    tl.store(logit_ptr + slots, logit)
    tl.store(slope_ptr + slots, slope)
    tl.store(cosine_ptr + slots, cosine)
    tl.store(pixel_weight_ptr + slots, weight)
    tl.store(left_out_ptr + slots, left_out.to(tl.int32))
    tl.store(outside_ptr + slots, outside)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _add_pixel_gradients(
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
    rows_ptr,
    labels_ptr,
    radial_ptr,
    factor_ptr,
    grad_ptr,
    table_grad_ptr,
    height,
    image_width,
    D: tl.constexpr,
    W: tl.constexpr,
    OUTSIDE: tl.constexpr,
):
    patch = tl.program_id(0)
    z1, z2, z3 = load_cells(cells_ptr, y_starts, x_starts, images, band, rows, columns, h, w, patch, W)
    m1, m2, m3 = load_interpolation(y_weights, x_weights, band, rows, columns, patch, 0, _P)
    slots = patch.to(tl.int64) * _P + tl.arange(0, _P)
    dims, cells = tl.arange(0, W), tl.arange(0, _CELLS)
    grad_u = product(m1, m2, m3, z1, z2, z3) * tl.load(radial_ptr + slots)[:, None]
    if OUTSIDE:
        place, inside = load_pixels_of(y_starts, x_starts, band, rows, columns, patch, height, image_width)
        factor = tl.load(factor_ptr + slots)
        ids = tl.load(labels_ptr + place, mask=inside & (factor != 0.0), other=-1)
        row = tl.max(ids, 0)
        if row >= 0:
            filled = (ids >= 0)[:, None] & (dims < D)[None, :]
            grad_u += tl.load(rows_ptr + ids[:, None] * D + dims[None, :], mask=filled, other=0.0) * factor[:, None]
            z = z1.to(tl.float32) + z2.to(tl.float32) + z3.to(tl.float32)
            shares = (m1.to(tl.float32) + m2.to(tl.float32) + m3.to(tl.float32)) * factor[:, None]
            while row >= 0:
                share = tl.sum(tl.where((ids == row)[:, None], shares, 0.0), 0)
                into_row = table_grad_ptr + row * D + dims
                tl.atomic_add(into_row, tl.sum(share[:, None] * z, 0), mask=dims < D, sem="relaxed")
                ids = tl.where(ids == row, -1, ids)
                row = tl.max(ids, 0)
    g1, g2, g3 = split(grad_u, ROUND=True)
    grad = product(tl.trans(m1), tl.trans(m2), tl.trans(m3), g1, g2, g3)
    into = grad_ptr + (patch.to(tl.int64) * _CELLS + cells)[:, None] * D + dims[None, :]
    known = (cells >= 0)[:, None] & (dims < D)[None, :]
    tl.store(into, tl.load(into, mask=known, other=0.0) + grad, mask=known)
