"""The embedding loss with score tiles that stay on chip, in Triton kernels, for where these can run.

Elsewhere scores go through memory in tiles; that path, in `kiloseg.losses.embedding`, is the reference. Triton is imported
only when it is used. Shapes: P pixels of a band, D embedding, C classes, K negatives, S candidates.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kiloseg.config import Negatives

if TYPE_CHECKING:
    from kiloseg.losses.embedding import _Band, _Candidates

BAND_BYTES = 16 * 2**20
"""Size aimed at for one P x D matrix of a band on a GPU: 349,525 pixels at D = 12, a whole image of 512 x 512, and 65,536 at
D = 64. Programs of 64 pixels then number a thousand or more, several for each of an H100's 132 multiprocessors, and
reading such a matrix takes 5 us by its bandwidth, about what starting an operation does. About ten live at once, which is
2.6 % of what training a ResNet-50 DeepLabV3+ takes at batch 10 and crop 512. Reckoned, not measured."""

MAX_NEAREST = 64
"""Classes that a pixel can hold in registers while it searches."""


def available(device: torch.device) -> bool:
    """Whether the kernels can run there: a GPU of compute capability 8.0 or more (bfloat16 on tensor cores), and Triton.

    KILOSEG_TRITON=0 in the environment says no, for comparison. TRITON_INTERPRET=1, which has to be set before Triton is
    imported, makes Triton interpret its kernels, so that they run, slowly, on CPU tensors.
    """
    if os.environ.get("KILOSEG_TRITON") == "0" or not _installed():
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return device.type == "cpu"
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


def covers(negatives: Negatives) -> bool:
    """Whether there are kernels for these negatives: for every kind but "mixed", up to MAX_NEAREST nearest."""
    return negatives.kind in ("all", "random") or (negatives.kind == "nearest" and negatives.count <= MAX_NEAREST)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def compare(band: _Band, candidates: _Candidates) -> None:
    """Loss and gradients of a band, for negatives that the kernels cover."""
    from kiloseg.losses.triton_rows import add_weighted_rows

    # Triton starts kernels on the current device.
    with torch.cuda.device_of(band.o_PD):
        sums_P = _softmax(band, candidates) if band.negatives.kind in ("all", "random") else _nearest(band, candidates)
        pull_P1 = band._settle(sums_P)
        if band.table.wants_grad:
            band.grad_o_PD.addcmul_(pull_P1, band.slope_o_PD)
            add_weighted_rows(band.table.grad_CD, pull_P1, band.slope_e_PD, band.target_P[:, None])


def _softmax(band: _Band, candidates: _Candidates) -> Tensor:
    """Sums of exponentials over every class, or over the drawn ones; sets the negatives' part of the gradients."""
    from kiloseg.losses.triton_softmax import softmax_sums, softmax_table_gradient

    rows_SD, left_out_P = candidates.rows_SD, band.target_P
    if candidates.drawn is not None:
        # Of the K + 1 drawn classes a pixel leaves out its own, or else the last.
        K = band.negatives.count
        place_C = band.target_P.new_full((len(band.table.rows_CD),), K)
        place_C[candidates.drawn] = torch.arange(K + 1, device=place_C.device)
        left_out_P = place_C[band.target_P]
    sums_P, pull_PD, top_P = softmax_sums(
        band.o_PD,
        rows_SD,
        left_out_P,
        band.tau,
        cosine=band.cosine,
        floor_P=band.z_target_P,
        wants_pull=band.table.wants_grad,
    )
    if top_P is not None:
        band.z_target_P -= top_P
    if pull_PD is not None:
        push_P = band._push(sums_P, slice(None))
        band.grad_o_PD = pull_PD.mul_(push_P[:, None])
        grad_SD = softmax_table_gradient(band.o_PD, rows_SD, left_out_P, push_P, top_P, band.tau, cosine=band.cosine)
        if candidates.drawn is None:
            band.table.grad_CD.add_(grad_SD)
        else:
            band.table.grad_CD.index_add_(0, candidates.drawn, grad_SD)
    return sums_P


def _nearest(band: _Band, candidates: _Candidates) -> Tensor:
    """The same for each pixel's own K classes."""
    from kiloseg.losses.triton_nearest import nearest_scores
    from kiloseg.losses.triton_rows import add_weighted_rows, weighted_rows

    rows_CD = band.table.rows_CD
    cosines_PK, chosen_PK = nearest_scores(band.o_PD, rows_CD, band.target_P, band.negatives.count)
    z_PK, distance_PK = band._logits(cosines_PK.mul_(candidates.scale).add_(candidates.shift), candidates)
    top_P = torch.maximum(z_PK.amax(1), band.z_target_P)
    band.z_target_P -= top_P
    weight_PK = z_PK.sub_(top_P[:, None]).exp2_()
    sums_P = weight_PK.sum(1)
    if band.table.wants_grad:
        if distance_PK is not None:
            weight_PK.div_(distance_PK)
        weight_PK.mul_(band._push(sums_P, slice(None))[:, None])
        band.grad_o_PD = weighted_rows(weight_PK, rows_CD, chosen_PK)
        add_weighted_rows(band.table.grad_CD, weight_PK, band.o_PD, chosen_PK)
    return sums_P
