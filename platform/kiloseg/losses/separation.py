"""The regulariser that keeps classes apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 4 * 2**20


def class_separation(table_CD: Tensor, *, margin: float = 0.2) -> Tensor:
    """Mean over classes of max(0, margin - distance to the nearest other class), rows normalised.

    Source: the separation term of https://arxiv.org/abs/2012.07489, (1/C) sum_c max(0, margin - min_{j != c} ||e_c - e_j||).
    The nearest class is searched without gradient in chunks of about CHUNK_BYTES, so memory is O(C * D) and not C * C;
    gradients reach both classes of each pair.

    Args:
        table_CD: the class table, C >= 2.
        margin: a distance of unit vectors, 0 to 2.

    Returns:
        A scalar, 0 to margin.

    Raises:
        ValueError: fewer than 2 classes, or a margin outside 0 to 2.
    """
    if table_CD.dim() != 2 or table_CD.shape[0] < 2:
        raise ValueError(f"a table of shape {tuple(table_CD.shape)}: expected (C, D) with at least 2 classes")
    if not 0 <= margin <= 2:
        raise ValueError(f"margin = {margin}: expected 0 to 2, a distance of unit vectors")
    with torch.autocast(table_CD.device.type, enabled=False):
        rows_CD = F.normalize(table_CD if table_CD.dtype == torch.float64 else table_CD.float(), dim=1)
        neighbours_CD = rows_CD[_nearest_other(rows_CD.detach())]
        distance_C = torch.linalg.vector_norm(rows_CD - neighbours_CD, dim=1)
        return F.relu(margin - distance_C).mean()


def _nearest_other(rows_CD: Tensor) -> Tensor:
    C = rows_CD.shape[0]
    chunk = max(CHUNK_BYTES // (rows_CD.element_size() * C), 1)
    nearest_C = torch.empty(C, dtype=torch.int64, device=rows_CD.device)
    for start in range(0, C, chunk):
        stop = min(start + chunk, C)
        cosine = rows_CD[start:stop] @ rows_CD.T
        cosine[:, start:stop].fill_diagonal_(-torch.inf)
        nearest_C[start:stop] = cosine.argmax(1)
    return nearest_C
