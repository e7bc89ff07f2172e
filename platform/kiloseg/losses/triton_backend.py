"""The embedding loss with score tiles that stay on chip, in Triton kernels, for where these can run.

Elsewhere scores go through memory in tiles; that path, in `kiloseg.losses.reference`, is the reference. Triton is imported only
when it is used. Shapes: P pixels of a band, D embedding, C classes, K negatives, S candidates.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kiloseg.config import Negatives
from kiloseg.losses.negatives import Candidates
from kiloseg.ops.logits import LOG2E
from kiloseg.ops.triton import MAX_NEAREST

if TYPE_CHECKING:
    from kiloseg.losses.reference import Band

BAND_BYTES = 4 * 2**20
"""Size aimed at for one P x D matrix of a band on a GPU: 87,381 pixels at D = 12. Programs of 64 pixels then number 1,365,
several for each of an H100's 132 multiprocessors. About ten such matrices live at once, which is 0.6 % of what training a
ResNet-50 DeepLabV3+ takes at batch 10 and crop 512. Reckoned, not measured."""


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
    """Whether there are kernels for these negatives: not for "mixed", log-Q and more than MAX_NEAREST nearest."""
    if negatives.kind == "nearest":
        return negatives.count <= MAX_NEAREST
    return negatives.kind != "mixed" and not negatives.log_q


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def compare(band: Band) -> None:
    """Sums of the exponentials of a band's negatives, and their part of the gradients."""
    # Triton starts kernels on the current device.
    with torch.cuda.device_of(band.o_DP):
        if band.comparison.candidates is None:
            _nearest(band, band.comparison.num_nearest)
        else:
            _softmax(band, band.comparison.candidates)


def pull_target(band: Band, pull_P: Tensor) -> None:
    """Adds the target's part of the table's gradient, with the factor `pull_P`."""
    from kiloseg.ops.triton.rows import add_weighted_rows

    with torch.cuda.device_of(band.o_DP):
        add_weighted_rows(
            band.table.grad_CD, pull_P[:, None], band.slope_e_DP.T.contiguous(), band.target_P[:, None].contiguous()
        )


def _softmax(band: Band, candidates: Candidates) -> None:
    """Softmax over every class, or over the drawn ones."""
    from kiloseg.ops.triton.softmax import softmax_sums, softmax_table_gradient

    if band.cosine:  # whose kernels keep logits below 0
        band.z_target_P -= band.tau * LOG2E
    o_PD, left_out_P = band.o_DP.T.contiguous(), candidates.left_out(band.target_P)
    band.sums_P, pull_PD, top_P = softmax_sums(
        o_PD,
        candidates.rows_SD,
        left_out_P,
        band.tau,
        cosine=band.cosine,
        floor_P=band.z_target_P,
        wants_pull=band.table.wants_grad,
    )
    if top_P is not None:
        band.z_target_P -= top_P
    if pull_PD is None:
        return
    push_P = band.push(slice(None))
    band.grad_o_DP = pull_PD.T * push_P
    grad_SD = softmax_table_gradient(o_PD, candidates.rows_SD, left_out_P, push_P, top_P, band.tau, cosine=band.cosine)
    if candidates.drawn_S is None:
        band.table.grad_CD.add_(grad_SD)
    else:
        band.table.grad_CD.index_add_(0, candidates.drawn_S, grad_SD)


def _nearest(band: Band, count: int) -> None:
    """Softmax over each pixel's own K classes."""
    from kiloseg.ops.triton.nearest import nearest_scores
    from kiloseg.ops.triton.rows import add_weighted_rows, weighted_rows

    rows_CD, o_PD = band.table.rows_CD, band.o_DP.T.contiguous()
    cosines_PK, ids_PK = nearest_scores(o_PD, rows_CD, band.target_P, count)
    weight_PK, distance_PK, _ = band.weigh_nearest(cosines_PK)
    if band.table.wants_grad:
        if distance_PK is not None:
            weight_PK.div_(distance_PK)
        weight_PK.mul_(band.push(slice(None))[:, None])
        band.grad_o_DP = weighted_rows(weight_PK, rows_CD, ids_PK).T.contiguous()
        add_weighted_rows(band.table.grad_CD, weight_PK, o_PD, ids_PK)
