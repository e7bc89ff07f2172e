"""The embedding dimension and the number of negatives that "auto" stands for, as functions of the number of classes.

Both grow with the square root of the number of classes: a grid of both at 16, 64, 256 and 1,024 classes (`experiments/rule.py`)
found powers around one half. The factors here are the smallest round ones with which the size at each of the four class counts is
large enough for 98 % of the best mIoU. docs/rule.md has the figure and says what the grid does not show.
"""

from __future__ import annotations

import math
from typing import Literal

Auto = Literal["auto"]

EMBED_DIM = 4.0
"""Embedding dimensions for each square root of the number of classes."""
NEGATIVES = {"random": 6.0, "nearest": 0.5, "mixed": 6.0}
"""Negatives for each square root of the number of classes, by kind; half of the mixed ones are random."""
DIM_STEP, MAX_DIM = 8, 256
"""Embedding dimensions are multiples of the first number and at most the second, as far as the CPU's kernels go."""
MAX_NEGATIVES = {"nearest": 64, "mixed": 64}
"""The largest numbers for which there are compiled kernels, by kind."""


def auto_embed_dim(num_classes: int) -> int:
    """Returns the embedding dimension D for a number of classes C: 4 sqrt(C), rounded up to a multiple of 8, at most 256."""
    return min(math.ceil(EMBED_DIM * math.sqrt(num_classes) / DIM_STEP) * DIM_STEP, MAX_DIM)


def auto_negatives(num_classes: int, kind: str) -> int:
    """Returns the number of negatives for a number of classes C: 6 sqrt(C) random or mixed ones, or sqrt(C) / 2 nearest ones.

    It is at least 2, but at most all other classes, and at most 64 for the kinds nearest and mixed.
    """
    found = max(math.ceil(NEGATIVES[kind] * math.sqrt(num_classes)), 2)
    return min(found, MAX_NEGATIVES.get(kind, found), num_classes - 1)
