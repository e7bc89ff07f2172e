"""The class table of a batch, and the classes that all its pixels are compared with: every one, or a few drawn ones.

Shapes: C classes, S candidates, P pixels, D embedding, E = D for cosine logits and D + 1 for distances.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kiloseg.config import Logit, Negatives
from kiloseg.ops.logits import LOG2E


class Table:
    """The normalised rows and their gradient, which tiles gather as (D, C) and kernels as (C, D)."""

    def __init__(self, rows_CD: Tensor, *, wants_grad: bool, on_chip: bool) -> None:
        self.rows_CD = rows_CD
        self.rows_DC = rows_CD.T.contiguous()
        self.wants_grad = wants_grad
        self.on_chip = on_chip
        if wants_grad and on_chip:
            self.grad_CD = torch.zeros_like(rows_CD)
        elif wants_grad:
            self.grad_DC = torch.zeros_like(self.rows_DC)

    def pull(self, ids: Tensor, vectors_Di: Tensor) -> None:
        """Adds a gradient for each of `ids`."""
        self.grad_DC.scatter_add_(1, ids.expand(len(vectors_Di), -1), vectors_Di)

    def grad(self) -> Tensor:
        """The whole gradient, (C, D)."""
        return self.grad_CD if self.on_chip else self.grad_DC.T.contiguous()


class Candidates:
    """S classes in the layouts that make products fast.

    With D of 10 to 60, P x S scores are bound by memory: (D, S) @ (S, P) ran at 1.5 x the speed of (P, S) @ (S, D) on a CPU.

    Args:
        table: the class table.
        drawn_S: ids of the candidates, int64; None for all classes.
        factor_S: by how much an exponential of each candidate counts; None for 1.
        temperature: tau.
        logit: decides what `products` gives.
    """

    def __init__(
        self, table: Table, drawn_S: Tensor | None, factor_S: Tensor | None, *, temperature: float, logit: Logit
    ) -> None:
        self.drawn_S = drawn_S
        self.factor_S = factor_S
        rows_CD = table.rows_CD
        self.rows_SD = rows_CD if drawn_S is None else rows_CD[drawn_S]
        self.transposed_DS = table.rows_DC if drawn_S is None else self.rows_SD.T.contiguous()
        tau = temperature * LOG2E
        # The constant of a squared distance rides along as a further dimension, which spares a pass over the scores.
        constant_1S = rows_CD.new_full((1, len(self.rows_SD)), 2.0 * tau**2)
        self._scaled_ES = (
            tau * self.transposed_DS
            if logit == "cosine"
            else torch.cat([-2.0 * tau**2 * self.transposed_DS, constant_1S])
        )
        # Column of each class; a class that is no candidate has the last one, which its pixels leave out instead, so
        # that every pixel has S - 1 negatives.
        self.column_C = None
        if drawn_S is not None:
            self.column_C = torch.full((len(rows_CD),), len(drawn_S) - 1, device=rows_CD.device)
            self.column_C[drawn_S] = torch.arange(len(drawn_S), device=rows_CD.device)
        # Reused by all bands: fresh memory of this size costs more in page faults than the product itself.
        self._scores = self._logits = rows_CD.new_empty(0)

    def __len__(self) -> int:
        return len(self.rows_SD)

    def left_out(self, target_P: Tensor) -> Tensor:
        """The column that each pixel is not compared with: its own class, or the last one."""
        return target_P if self.column_C is None else self.column_C[target_P]

    def products(self, o_PE: Tensor) -> Tensor:
        """tau log2(e) o.e for cosine logits, (tau log2(e))^2 ||o - e||^2 for distances: (P, S).

        The result lies in a buffer that the next call overwrites.

        Args:
            o_PE: unit vectors, for distances with a further column of ones; of any strides.
        """
        size = len(o_PE) * len(self)
        if self._scores.numel() < size:
            self._scores = self._scores.new_empty(size)
        return torch.mm(o_PE, self._scaled_ES, out=self._scores[:size].view(len(o_PE), -1))

    def negated(self, distance_PS: Tensor) -> Tensor:
        """-distance, in a buffer of its own."""
        if self._logits.numel() < distance_PS.numel():
            self._logits = torch.empty_like(distance_PS).view(-1)
        return torch.neg(distance_PS, out=self._logits[: distance_PS.numel()].view_as(distance_PS))


def draw_candidates(negatives: Negatives, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """K + 1 classes for all pixels of a batch: those that occur in it first, the others at random, without replacement.

    Shared by the batch, so that the cost of a step does not depend on C; those that occur come first since a network has
    to tell apart what is in the picture. Which of the drawn ones a pixel leaves out: see `Candidates.left_out`.

    Args:
        negatives: `count` is K.
        labels: int64 of any shape; negative ones are ignored.
        num_classes: C.

    Returns:
        Ids, int64 (K + 1,), and, if `negatives.log_q`, the number of classes that each stands for (K + 1,), else None. The
        correction is that of sampled softmax (https://arxiv.org/abs/1412.2007, section 3): an absent class that is drawn
        with probability q counts 1 / q times, so that sums over candidates estimate sums over all classes.
    """
    # On the host, so that a seed draws the same classes on every device; nothing is read back from the device.
    key_C = torch.rand(num_classes).to(labels.device)
    places = labels.reshape(-1).where(labels.reshape(-1) >= 0, num_classes)  # ignored ones go to a place of their own
    occurs_C = torch.zeros(num_classes + 1, device=labels.device).scatter_(0, places, 1.0)[:-1]
    drawn_S = (key_C + occurs_C).topk(negatives.count + 1).indices
    if not negatives.log_q:
        return drawn_S, None
    occurs_S = occurs_C[drawn_S]
    num_absent, num_drawn_absent = num_classes - occurs_C.sum(), len(drawn_S) - occurs_S.sum()
    stands_for = num_absent / num_drawn_absent.clamp(min=1)
    return drawn_S, torch.where(occurs_S > 0, torch.ones_like(stands_for), stands_for)
