"""The learned table that holds an embedding per class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassTable(nn.Module):
    """C learned rows of D numbers, drawn from U(-1, 1) and normalised, as the paper's code starts them.

    Losses and prediction normalise the rows themselves, so the parameter is free to leave the sphere.

    Args:
        num_classes: C.
        embed_dim: D.
    """

    def __init__(self, num_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.rows_CD = nn.Parameter(F.normalize(torch.rand(num_classes, embed_dim) * 2 - 1, dim=1))

    def forward(self) -> Tensor:
        """The raw rows, (C, D)."""
        return self.rows_CD
