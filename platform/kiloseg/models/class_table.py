"""Defines the learned table that has one embedding per class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClassTable(nn.Module):
    """Holds C learned rows of D numbers, drawn from U(-1, 1) and normalized, as the paper's code initializes them.

    Losses and prediction normalize the rows themselves, so the parameter is free to leave the sphere.

    Args:
        num_classes: the number of classes C.
        embed_dim: the number of dimensions D.
    """

    def __init__(self, num_classes: int, embed_dim: int) -> None:
        super().__init__()
        self.rows_CD = nn.Parameter(F.normalize(torch.rand(num_classes, embed_dim) * 2 - 1, dim=1))

    def forward(self) -> Tensor:
        """Returns the raw rows, of shape (C, D)."""
        return self.rows_CD
