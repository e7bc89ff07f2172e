"""Computes the paper's loss as its own code does, including its faults, for comparison with `embedding_cross_entropy`.

Source: ESSNet, the code of "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU"
(https://arxiv.org/abs/2012.07489), rewritten here.

Shapes: B batch, H W pixels, h w feature cells, P = B*H*W, D embedding, C classes, K negatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.losses.pixel_weights import mean_weights
from kiloseg.ops.top_k import nearest_classes

Search = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""A search maps pixels (P, D), the table's rows as columns (D, C), and K to scores (larger is nearer) and ids, both (P, K)."""


def official_cross_entropy(
    pixels_BDhw: Tensor,
    table_CD: Tensor,
    labels_BHW: Tensor,
    *,
    count: int,
    temperature: float = 20.0,
    ignore_index: int = -1,
    search: Search = nearest_classes,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    """Computes the mean cross-entropy over labeled pixels against the K nearest classes, by the formula of the paper's code.

    It differs from `embedding_cross_entropy` with "nearest" and "distance" in three ways. Pixels are normalized before they are
    upsampled, so between feature cells |o| < 1. The search runs over all classes; where it finds the pixel's own class t, the
    negative is t - 1 instead (for t = 0 it is 0, which is then its own negative, so its loss is at least log 2). And K + 1 vectors
    per pixel are gathered, so memory is O(B * H * W * K * D).

    Args:
        pixels_BDhw: the output of the embedding head, floating point.
        table_CD: the class table; rows are normalized here.
        labels_BHW: int64, 0 to C - 1, or `ignore_index`.
        count: the number K of negatives, 1 to C - 1.
        temperature: the factor tau, above 0.
        ignore_index: the label of pixels that do not count.
        search: the function that finds the nearest classes; the paper's code uses faiss.
        class_weights_C: the weight of every class in the mean over pixels; None: 1 for all.

    Returns:
        A scalar. It is 0, with zero gradients, if no pixel is labeled.
    """
    B, D = pixels_BDhw.shape[:2]
    H, W = labels_BHW.shape[1:]
    with torch.autocast(pixels_BDhw.device.type, enabled=False):
        unit_BDhw = F.normalize(pixels_BDhw.float(), dim=1)
        o_BDHW = F.interpolate(unit_BDhw, size=(H, W), mode="bilinear", align_corners=False)
        rows_CD = F.normalize(table_CD.float(), dim=1)
        known_BHW = labels_BHW != ignore_index
        own_BHW = labels_BHW.where(known_BHW, 0)
        with torch.no_grad():
            queries_PD = o_BDHW.permute(0, 2, 3, 1).reshape(-1, D)
            _, found_PK = search(queries_PD, rows_CD.T.contiguous(), count)
            negatives_PK = torch.where(found_PK == own_BHW.view(-1, 1), found_PK - 1, found_PK).clamp_(min=0)
            negatives_BKHW = negatives_PK.view(B, H, W, count).permute(0, 3, 1, 2)
            compared_BkHW = torch.cat([own_BHW[:, None], negatives_BKHW], 1)
        classes_BkDHW = rows_CD[compared_BkHW].permute(0, 1, 4, 2, 3)
        z_BkHW = -temperature * torch.linalg.vector_norm(o_BDHW[:, None] - classes_BkDHW, dim=2)
        first_BHW = torch.zeros_like(labels_BHW).masked_fill_(~known_BHW, -1)
        if class_weights_C is None:
            total = F.cross_entropy(z_BkHW, first_BHW, ignore_index=-1, reduction="sum")
            return total / known_BHW.sum().clamp(min=1)
        weights_BHW, whole = mean_weights(class_weights_C, labels_BHW, known_BHW)
        return (F.cross_entropy(z_BkHW, first_BHW, ignore_index=-1, reduction="none") * weights_BHW).sum() / whole
