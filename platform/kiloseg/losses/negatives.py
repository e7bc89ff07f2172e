"""Which classes the pixels of a batch are compared with besides their own.

Shapes: C classes, S candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kiloseg.config import Negatives


@dataclass(frozen=True, kw_only=True)
class ResolvedNegatives:
    """Kind and count of negatives as numbers: what each backend needs to know of them."""

    shares: bool
    """Whether all pixels are compared with the same candidates: every class, or those drawn for the batch."""
    drawn: int
    """Classes drawn once per batch; 0 for none."""
    nearest: int
    """Classes nearest to each pixel that are its own negatives; 0 for none."""
    from_drawn: int
    """How many of the drawn classes join a pixel's nearest ones: the first that are neither among those nor its own class."""

    @property
    def own(self) -> int:
        """Negatives that each pixel has for itself (K); 0 where candidates are shared."""
        return self.nearest + self.from_drawn


def resolve_negatives(negatives: Negatives, num_classes: int) -> ResolvedNegatives:
    """What `negatives` means for a table of `num_classes`.

    Raises:
        ValueError: more negatives than other classes.
    """
    negatives.check_classes(num_classes)
    K = negatives.count
    if negatives.kind == "all":
        return ResolvedNegatives(shares=True, drawn=0, nearest=0, from_drawn=0)
    if negatives.kind == "random":
        # One more, in place of a pixel's own class.
        return ResolvedNegatives(shares=True, drawn=K + 1, nearest=0, from_drawn=0)
    if negatives.kind == "nearest":
        return ResolvedNegatives(shares=False, drawn=0, nearest=K, from_drawn=0)
    return ResolvedNegatives(shares=False, drawn=K + 1, nearest=K - K // 2, from_drawn=K // 2)


def draw_candidates(count: int, labels: Tensor, num_classes: int) -> Tensor:
    """Draws `count` classes for all pixels of a batch: those that occur in it first, the others at random, without replacement.

    Shared by the batch, so that the cost of a step does not depend on C; those that occur come first since a network has
    to tell apart what is in the picture. Which of the drawn ones a pixel leaves out: see `candidate_columns`.

    Args:
        count: S, 1 to C.
        labels: int64 of any shape; negative ones are ignored.
        num_classes: C.

    Returns:
        Class ids, int64 (S,).
    """
    # On the host, so that a seed draws the same classes on every device; nothing is read back from the device.
    key_C = torch.rand(num_classes).to(labels.device)
    places = labels.reshape(-1).where(labels.reshape(-1) >= 0, num_classes)  # ignored ones go to a place of their own
    occurs_C = torch.zeros(num_classes + 1, device=labels.device).scatter_(0, places, 1.0)[:-1]
    return (key_C + occurs_C).topk(count).indices


def candidate_columns(drawn_S: Tensor, num_classes: int) -> Tensor:
    """The candidate that pixels of each class leave out, int64 (C,): their own class, or the last if that was not drawn.

    So every pixel has S - 1 negatives.
    """
    column_C = torch.full((num_classes,), len(drawn_S) - 1, device=drawn_S.device)
    column_C[drawn_S] = torch.arange(len(drawn_S), device=drawn_S.device)
    return column_C
