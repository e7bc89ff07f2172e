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
        learned_temperature: whether there is a factor on the temperature to learn, kept as its logarithm
            (https://arxiv.org/abs/2103.00020, section 2.5).
    """

    def __init__(self, num_classes: int, embed_dim: int, *, learned_temperature: bool = False) -> None:
        super().__init__()
        self.rows_CD = nn.Parameter(F.normalize(torch.rand(num_classes, embed_dim) * 2 - 1, dim=1))
        self.log_factor = nn.Parameter(torch.zeros(())) if learned_temperature else None

    def forward(self) -> Tensor:
        """The raw rows, (C, D)."""
        return self.rows_CD

    def temperature_factor(self) -> Tensor | float:
        """What the temperature of the loss is multiplied by: a scalar with its graph where it is learned, else 1."""
        return 1.0 if self.log_factor is None else self.log_factor.exp()
