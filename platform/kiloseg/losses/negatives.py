"""Decides which classes the pixels of a batch are compared with besides their own.

Shapes: C classes, S candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kiloseg.config import Negatives


@dataclass(frozen=True, kw_only=True)
class ResolvedNegatives:
    """Holds the kind and count of negatives as numbers, which is what each backend needs to know."""

    shares: bool
    """Whether all pixels are compared with the same candidates: either every class, or those drawn for the batch."""
    drawn: int
    """The number of classes drawn once per batch; 0 means none."""
    nearest: int
    """The number of classes nearest to each pixel that are its own negatives; 0 means none."""
    from_drawn: int
    """How many of the drawn classes join a pixel's nearest ones: the first that are neither among those nor its own class."""

    @property
    def own(self) -> int:
        """The number of negatives that belong to each pixel alone (K); 0 if candidates are shared."""
        return self.nearest + self.from_drawn


def resolve_negatives(negatives: Negatives, num_classes: int) -> ResolvedNegatives:
    """Works out what `negatives` means for a table of `num_classes`.

    Raises:
        ValueError: There are more negatives than other classes.
    """
    negatives.check_classes(num_classes)
    K = negatives.number(num_classes)
    if negatives.kind == "all":
        return ResolvedNegatives(shares=True, drawn=0, nearest=0, from_drawn=0)
    if negatives.kind == "random":
        # One more is drawn, to replace a pixel's own class.
        return ResolvedNegatives(shares=True, drawn=K + 1, nearest=0, from_drawn=0)
    if negatives.kind == "nearest":
        return ResolvedNegatives(shares=False, drawn=0, nearest=K, from_drawn=0)
    return ResolvedNegatives(shares=False, drawn=K + 1, nearest=K - K // 2, from_drawn=K // 2)


def draw_candidates(count: int, labels: Tensor, num_classes: int) -> Tensor:
    """Draws `count` classes for all pixels of a batch: those that occur in it first, the others at random, without replacement.

    The whole batch shares them, so the cost of a step does not depend on C. Classes that occur come first because a network has to
    tell apart what is in the picture. `candidate_columns` says which of the drawn classes a pixel leaves out.

    Args:
        count: the number S of classes, 1 to C.
        labels: int64 of any shape; negative labels are ignored.
        num_classes: the number C of classes in the table.

    Returns:
        The class ids, int64 (S,).
    """
    # This runs on the host so that a seed draws the same classes on every device; nothing is read back from the device.
    key_C = torch.rand(num_classes).to(labels.device)
    places = labels.reshape(-1).where(labels.reshape(-1) >= 0, num_classes)  # ignored pixels get an extra slot
    occurs_C = torch.zeros(num_classes + 1, device=labels.device).scatter_(0, places, 1.0)[:-1]
    return (key_C + occurs_C).topk(count).indices


def candidate_columns(drawn_S: Tensor, num_classes: int) -> Tensor:
    """Returns the candidate that pixels of each class leave out, int64 (C,): their own class, or the last if that was not drawn.

    As a result, every pixel has S - 1 negatives.
    """
    column_C = torch.full((num_classes,), len(drawn_S) - 1, device=drawn_S.device)
    column_C[drawn_S] = torch.arange(len(drawn_S), device=drawn_S.device)
    return column_C
