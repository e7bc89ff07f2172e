"""The embedding dimension and the number of negatives that "auto" stands for, as functions of the number of classes.

Source: a grid of both at four class counts (`experiments/rule.py`); docs/rule.md has its figure and says what it does not show.
"""

from __future__ import annotations

import math
from typing import Literal

Auto = Literal["auto"]

EMBED_DIM = (16.0, 0.0)
"""Factor a and power p of the embedding dimension a C^p."""
NEGATIVES = {"random": (16.0, 0.0), "nearest": (16.0, 0.0)}
"""The same for the number of negatives of each kind."""
STEP = 8
"""Embedding dimensions are multiples of it, since kernels work on so many numbers at once."""


def auto_embed_dim(num_classes: int) -> int:
    """Returns the embedding dimension D for a number of classes C: a C^p, rounded up to a multiple of 8."""
    factor, power = EMBED_DIM
    return math.ceil(factor * num_classes**power / STEP) * STEP


def auto_negatives(num_classes: int, kind: str) -> int:
    """Returns the number of negatives for a number of classes C, at most C - 1; mixed ones are as many as random ones."""
    factor, power = NEGATIVES["nearest" if kind == "nearest" else "random"]
    return min(math.ceil(factor * num_classes**power), num_classes - 1)
