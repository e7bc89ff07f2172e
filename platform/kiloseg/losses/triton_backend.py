"""Computes the embedding loss on a GPU, where Triton kernels keep tiles of scores in registers and shared memory.

Elsewhere scores go through memory in tiles; that path, `kiloseg.losses.reference`, is the reference. Triton is imported only
when it is used. Shapes: P pixels of a block, D embedding, C classes, K negatives, S candidates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kiloseg.losses.negatives import ResolvedNegatives
from kiloseg.losses.reference import BlockLoss
from kiloseg.losses.table import Candidates
from kiloseg.ops.logits import LOG2E
from kiloseg.ops.triton import MAX_NEAREST

BLOCK_BYTES = 4 * 2**20
"""The target size of one P x D matrix of a block on a GPU, in bytes: 87,381 pixels at D = 12. There are then 1,365 programs of 64
pixels, several for each of an H100's 132 multiprocessors. About ten such matrices are alive at once, which is 0.6 % of what
training a ResNet-50 DeepLabV3+ takes at batch 10 and crop 512. These figures are calculated, not measured."""


def covers(negatives: ResolvedNegatives) -> bool:
    """Whether there are kernels for these negatives. There are none for "mixed" or for more than MAX_NEAREST nearest classes."""
    return negatives.shares or (negatives.from_drawn == 0 and negatives.nearest <= MAX_NEAREST)


class TritonBlockLoss(BlockLoss):
    """Computes loss and gradients of P pixels with Triton kernels; its table keeps its gradient by class.

    Args:
        found: cosines and ids of the pixels' nearest classes, if they are known already.
    """

    reads_target_from_scores = False

    def __init__(self, *args: Any, found: tuple[Tensor, Tensor] | None = None) -> None:
        self.found = found
        super().__init__(*args)

    def compare(self) -> None:
        """Sets the sums of the negatives' exponentials and their part of the gradients."""
        # Triton starts kernels on the current device.
        with torch.cuda.device_of(self.o_DP):
            if self.comparison.candidates is None:
                self._compare_with_nearest(self.comparison.negatives.nearest)
            else:
                self._compare_with_shared(self.comparison.candidates)

    def add_target_gradient(self, factor_P: Tensor) -> None:
        """Adds the target's part of the table's gradient: `slope_e_DP` times the factor."""
        from kiloseg.ops.triton.rows import add_weighted_rows

        with torch.cuda.device_of(self.o_DP):
            slope_e_PD = self.slope_e_DP.T.contiguous()
            add_weighted_rows(self.table.grad_CD, factor_P[:, None], slope_e_PD, self.target_P[:, None].contiguous())

    def _compare_with_shared(self, candidates: Candidates) -> None:
        """Computes the softmax over every class, or over the drawn ones."""
        from kiloseg.ops.triton.softmax import softmax_sums, softmax_table_gradient

        if self.cosine:  # the kernels for cosines keep logits below 0
            self.z_target_P -= self.tau * LOG2E
        o_PD, left_out_P = self.o_DP.T.contiguous(), candidates.left_out(self.target_P)
        self.sums_P, row_sums_PD, top_P = softmax_sums(
            o_PD,
            candidates.rows_SD,
            left_out_P,
            self.tau,
            cosine=self.cosine,
            floor_P=self.z_target_P,
            wants_row_sums=self.table.wants_grad,
        )
        if top_P is not None:
            self.z_target_P -= top_P
        if row_sums_PD is None:
            return
        factor_P = self.gradient_factor(slice(None))
        self.grad_o_DP = row_sums_PD.T * factor_P
        grad_SD = softmax_table_gradient(
            o_PD, candidates.rows_SD, left_out_P, factor_P, top_P, self.tau, cosine=self.cosine
        )
        if candidates.drawn_S is None:
            self.table.grad_CD.add_(grad_SD)
        else:
            self.table.grad_CD.index_add_(0, candidates.drawn_S, grad_SD)

    def _compare_with_nearest(self, count: int) -> None:
        """Computes the softmax over each pixel's own K classes."""
        from kiloseg.ops.triton.nearest import nearest_scores
        from kiloseg.ops.triton.rows import add_weighted_rows, weighted_rows

        rows_CD, o_PD = self.table.rows_CD, self.o_DP.T.contiguous()
        cosines_PK, ids_PK = self.found or nearest_scores(o_PD, rows_CD, self.target_P, count)
        weight_PK, distance_PK, _ = self.weigh_nearest(cosines_PK)
        if self.table.wants_grad:
            if distance_PK is not None:
                weight_PK.div_(distance_PK)
            weight_PK.mul_(self.gradient_factor(slice(None))[:, None])
            self.grad_o_DP = weighted_rows(weight_PK, rows_CD, ids_PK).T.contiguous()
            add_weighted_rows(self.table.grad_CD, weight_PK, o_PD, ids_PK)
