"""Defines what a user would use instead of kiloseg's loss, each as a function of the same tensors.

All take pixel embeddings at stride 4 (B, D, h, w), a class table (C, D) and labels (B, H, W), and give the mean loss;
`dense` takes logits (B, C, h, w) in place of embeddings. Shapes: P = B * H * W pixels, K negatives.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.losses import dense_cross_entropy, official_cross_entropy
from kiloseg.losses.dense import upsampled_logits

TAU = 20.0


def dense(logits_BChw: Tensor, _: Tensor, labels_BHW: Tensor) -> Tensor:
    """A logit per class, upsampled: what segmentation libraries do. The layer that makes the logits is not counted."""
    return dense_cross_entropy(logits_BChw, labels_BHW)


def dense_argmax(logits_BChw: Tensor, _: Tensor, labels_BHW: Tensor) -> Tensor:
    """Predicts the class of the highest of the upsampled logits, as the dense head does: int64 (B, H, W)."""
    return upsampled_logits(logits_BChw, (labels_BHW.shape[1], labels_BHW.shape[2])).argmax(1)


def _unit_pixels(pixels_BDhw: Tensor, labels_BHW: Tensor) -> Tensor:
    """Returns embeddings at full resolution, normalized: (P, D)."""
    full_BDHW = F.interpolate(pixels_BDhw, size=labels_BHW.shape[1:], mode="bilinear", align_corners=False)
    return F.normalize(full_BDHW, dim=1).permute(0, 2, 3, 1).reshape(-1, pixels_BDhw.shape[1])


def torch_linear(pixels_BDhw: Tensor, table_CD: Tensor, labels_BHW: Tensor) -> Tensor:
    """Computes the exact softmax over cosines with torch's own chunked loss (torch >= 2.13)."""
    return F.linear_cross_entropy(
        _unit_pixels(pixels_BDhw, labels_BHW),
        TAU * F.normalize(table_CD, dim=1),
        labels_BHW.reshape(-1),
        ignore_index=-1,
        options=torch.nn.LinearCrossEntropyOptions(),
    )


def official(pixels_BDhw: Tensor, table_CD: Tensor, labels_BHW: Tensor, *, count: int) -> Tensor:
    """Computes the paper's loss as its code does, with faiss for the search as there, without its regularizer."""
    return official_cross_entropy(
        pixels_BDhw, table_CD, labels_BHW, count=count, temperature=TAU, search=_search_by_faiss
    )


def _search_by_faiss(pixels_PD: Tensor, rows_DC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    import faiss

    index = faiss.IndexFlatL2(len(rows_DC))
    index.add(rows_DC.T.contiguous().cpu().numpy())
    distances_PK, ids_PK = index.search(pixels_PD.contiguous().cpu().numpy(), count)
    return -torch.from_numpy(distances_PK), torch.from_numpy(ids_PK).to(pixels_PD.device)


def cut_cross_entropy(pixels_BDhw: Tensor, table_CD: Tensor, labels_BHW: Tensor) -> Tensor:
    """Computes the exact softmax with Apple's cut-cross-entropy, GPU only, which computes in bfloat16."""
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(
        _unit_pixels(pixels_BDhw, labels_BHW).bfloat16(),
        (TAU * F.normalize(table_CD, dim=1)).bfloat16(),
        labels_BHW.reshape(-1),
        ignore_index=-1,
        filter_eps=None,  # by default small gradients are dropped
    )
    return loss


def liger(pixels_BDhw: Tensor, table_CD: Tensor, labels_BHW: Tensor) -> Tensor:
    """Computes the exact softmax with Liger's fused linear cross-entropy, GPU only."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(ignore_index=-1)(
        TAU * F.normalize(table_CD, dim=1), _unit_pixels(pixels_BDhw, labels_BHW), labels_BHW.reshape(-1)
    )
    return loss
