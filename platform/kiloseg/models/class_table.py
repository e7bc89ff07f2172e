"""Defines the tables of classes: one learned embedding per class, or several prototypes per class that are not learned.

Shapes: C classes, D embedding, k prototypes of a class.
"""

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


class PrototypeTable(nn.Module):
    """Holds k prototypes of each class, unit vectors that follow the means of pixels and get no gradient.

    They are drawn from a normal distribution and normalized, as the code of the paper initializes them
    (https://arxiv.org/abs/2203.15102). They are a buffer: no optimizer knows them, and checkpoints keep them.

    Args:
        num_classes: the number of classes C.
        prototypes: the number of prototypes of a class, k.
        embed_dim: the number of dimensions D.
    """

    rows_CkD: Tensor

    def __init__(self, num_classes: int, prototypes: int, embed_dim: int) -> None:
        super().__init__()
        rows_CkD = nn.init.trunc_normal_(torch.empty(num_classes, prototypes, embed_dim), std=0.02)
        self.register_buffer("rows_CkD", F.normalize(rows_CkD, dim=2))

    def forward(self) -> Tensor:
        """Returns the prototypes as rows, of shape (C * k, D): those of the first class, then those of the second, and so on."""
        return self.rows_CkD.flatten(0, 1)

    @torch.no_grad()
    def follow(self, sums_CkD: Tensor, momentum: float) -> None:
        """Moves each prototype towards the mean direction of its pixels, and normalizes it again.

        p becomes momentum * p + (1 - momentum) * m, where m is the sum of its pixels divided by its length. A prototype without
        pixels stays.

        Args:
            sums_CkD: the sums of the unit embeddings of the pixels of each prototype, which are overwritten.
            momentum: the share of the old prototype, 0 to 1.
        """
        lengths_Ck1 = torch.linalg.vector_norm(sums_CkD, dim=2, keepdim=True)
        moves_Ck1 = (lengths_Ck1 > 0) * (1 - momentum)
        sums_CkD.div_(lengths_Ck1.clamp_(min=1e-12))
        self.rows_CkD.lerp_(sums_CkD, moves_Ck1)
        self.rows_CkD.div_(torch.linalg.vector_norm(self.rows_CkD, dim=2, keepdim=True).clamp_(min=1e-12))
