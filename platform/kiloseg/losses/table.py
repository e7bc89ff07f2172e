"""Holds the class table of a batch in the layouts that products need, and the candidates that all its pixels share.

Shapes: C classes, S candidates, P pixels, D embedding, E = D for cosine logits and D + 1 for distances.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kiloseg.config import Logit
from kiloseg.losses.negatives import candidate_columns
from kiloseg.ops.logits import LOG2E


class Table:
    """Holds the normalized rows and their gradient.

    Args:
        rows_CD: the rows, of unit length.
        wants_grad: whether a gradient is accumulated.
        grad_by_class: keep the gradient as `grad_CD`, which Triton kernels add to, instead of `grad_DC`, which products of tiles
            add to.
    """

    def __init__(self, rows_CD: Tensor, *, wants_grad: bool, grad_by_class: bool) -> None:
        self.rows_CD = rows_CD
        self.rows_DC = rows_CD.T.contiguous()
        self.wants_grad = wants_grad
        self.grad_by_class = grad_by_class
        if wants_grad and grad_by_class:
            self.grad_CD = torch.zeros_like(rows_CD)
        elif wants_grad:
            self.grad_DC = torch.zeros_like(self.rows_DC)

    def scatter_add(self, ids: Tensor, vectors_Di: Tensor) -> None:
        """Adds a column of `vectors_Di` to the gradient of each class of `ids`."""
        self.grad_DC.scatter_add_(1, ids.expand(len(vectors_Di), -1), vectors_Di)

    def grad(self) -> Tensor:
        """Returns the whole gradient, (C, D)."""
        return self.grad_CD if self.grad_by_class else self.grad_DC.T.contiguous()


class Candidates:
    """Holds S classes in the layouts that make products fast.

    With D of 10 to 60, P x S scores are bound by memory: (D, S) @ (S, P) ran at 1.5 x the speed of (P, S) @ (S, D) on a CPU.

    Args:
        table: the class table.
        drawn_S: the ids of the candidates, int64; None means all classes.
        temperature: the factor tau.
        logit: the kind of logit, which decides what `products` returns.
    """

    def __init__(self, table: Table, drawn_S: Tensor | None, *, temperature: float, logit: Logit) -> None:
        self.drawn_S = drawn_S
        rows_CD = table.rows_CD
        self.rows_SD = rows_CD if drawn_S is None else rows_CD[drawn_S]
        self.transposed_DS = table.rows_DC if drawn_S is None else self.rows_SD.T.contiguous()
        tau = temperature * LOG2E
        # The constant of a squared distance is stored as an extra dimension, which saves a pass over the scores.
        constant_1S = rows_CD.new_full((1, len(self.rows_SD)), 2.0 * tau**2)
        self.scaled_ES = (
            tau * self.transposed_DS
            if logit == "cosine"
            else torch.cat([-2.0 * tau**2 * self.transposed_DS, constant_1S])
        )
        self.column_C = None if drawn_S is None else candidate_columns(drawn_S, len(rows_CD))
        # All bands reuse this buffer: fresh memory of this size costs more in page faults than the product itself.
        self._scores = self._logits = rows_CD.new_empty(0)

    def __len__(self) -> int:
        return len(self.rows_SD)

    def left_out(self, target_P: Tensor) -> Tensor:
        """Returns the column that each pixel is not compared with: its own class, or the last one."""
        return target_P if self.column_C is None else self.column_C[target_P]

    def products(self, o_PE: Tensor) -> Tensor:
        """Returns tau log2(e) o.e for cosine logits, or (tau log2(e))^2 ||o - e||^2 for distances: (P, S).

        The result is in a buffer that the next call overwrites.

        Args:
            o_PE: unit vectors, with an extra column of ones for distances; any strides.
        """
        return torch.mm(o_PE, self.scaled_ES, out=self.buffer(len(o_PE), len(self)))

    def buffer(self, *size: int) -> Tensor:
        """Returns the memory that `products` also uses, for a matrix or a batch of them; the next call overwrites it."""
        count = math.prod(size)
        if self._scores.numel() < count:
            self._scores = self._scores.new_empty(count)
        return self._scores[:count].view(size)

    def negated(self, distance_PS: Tensor) -> Tensor:
        """Returns -distance, in a separate buffer."""
        if self._logits.numel() < distance_PS.numel():
            self._logits = torch.empty_like(distance_PS).view(-1)
        return torch.neg(distance_PS, out=self._logits[: distance_PS.numel()].view_as(distance_PS))
