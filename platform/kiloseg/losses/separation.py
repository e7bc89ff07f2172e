"""Computes the regularizer that keeps classes apart.

Shapes: C classes, D embedding, R classes whose distance is computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.ops.top_k import nearest_classes


def class_separation(table_CD: Tensor, *, margin: float = 0.2, sample: int | None = None) -> Tensor:
    """Computes the mean over classes of max(0, margin - distance to the nearest other class), with normalized rows.

    Source: the separation term of https://arxiv.org/abs/2012.07489, (1/C) sum_c max(0, margin - min_{j != c} ||e_c - e_j||).
    The nearest class is searched without gradient in tiles, so memory is O(C * D) instead of C * C. Gradients reach both classes
    of each pair. Time is O(C * C * D), or O(sample * C * D).

    Args:
        table_CD: the class table, with C >= 2.
        margin: a distance between unit vectors, 0 to 2.
        sample: take the mean over this many classes, drawn without replacement (from torch's CPU generator), each compared with
            all others; this is an unbiased estimate. None, or at least C, takes all classes, which is exact.

    Returns:
        A scalar between 0 and margin.

    Raises:
        ValueError: There are fewer than 2 classes, margin is outside 0 to 2, or sample is below 1.
    """
    if table_CD.dim() != 2 or table_CD.shape[0] < 2:
        raise ValueError(f"a table of shape {tuple(table_CD.shape)}: expected (C, D) with at least 2 classes")
    if not 0 <= margin <= 2:
        raise ValueError(f"margin = {margin}: expected 0 to 2, a distance of unit vectors")
    if sample is not None and sample < 1:
        raise ValueError(f"sample = {sample}: expected at least 1 class, or None for all")
    C = len(table_CD)
    with torch.autocast(table_CD.device.type, enabled=False):
        rows_CD = F.normalize(table_CD if table_CD.dtype == torch.float64 else table_CD.float(), dim=1)
        if sample is None or sample >= C:
            chosen_R = torch.arange(C, device=rows_CD.device)
        else:
            chosen_R = torch.randperm(C)[:sample].to(rows_CD.device)
        fixed_CD = rows_CD.detach()
        _, nearest_R1 = nearest_classes(fixed_CD[chosen_R], fixed_CD.T.contiguous(), 1, exclude_P=chosen_R)
        distance_R = torch.linalg.vector_norm(rows_CD[chosen_R] - rows_CD[nearest_R1[:, 0]], dim=1)
        return F.relu(margin - distance_R).mean()
