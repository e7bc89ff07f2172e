"""Computes loss and gradients of the pixels of one block of image rows with torch's own operations.

Shapes: P pixels, D embedding, C classes, S candidates shared by all pixels, K neighbors of each pixel, E = D for cosine logits
and D + 1 for distances. Pixel vectors are kept as columns, (D, P), so per-pixel operations run along rows of P values instead of D
values at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.config import Logit
from kiloseg.losses.negatives import ResolvedNegatives
from kiloseg.losses.table import Candidates, Table
from kiloseg.ops.logits import LOG2E, MIN_SQUARED_DISTANCE, SAFE_EXPONENT
from kiloseg.ops.tiles import tile_pixels, tiles
from kiloseg.ops.top_k import nearest_classes

_NORM_EPS = 1e-12


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Says what the pixels of a batch are compared with."""

    temperature: float
    logit: Logit
    negatives: ResolvedNegatives
    candidates: Candidates | None
    """The classes shared by all pixels, or the drawn classes from which each pixel takes some besides its nearest."""
    tile_bytes: int | None
    """The target size of one matrix of scores in bytes; None means kiloseg.ops.tiles.TILE_BYTES."""


class BlockLoss:
    """Computes loss and gradients of P pixels; a subclass may compute them by other means than torch's operations.

    With distances, the target is computed separately, from the difference of the vectors: it is the one class whose distance goes
    to 0, where 2 - 2 o.e has no digits left. With cosines, its logit is as accurate as the others', so if all classes are compared
    it is read from their scores, and its gradient is part of their products.

    Logits z are stored multiplied by log2(e), minus a maximum if there is one.

    Args:
        raw_PD: the embeddings before normalization.
        table: the class table.
        target_P: the class of each pixel, int64; any class where `weight_P` is 0.
        weight_P: the share of each pixel in the loss.
        comparison: the negatives.
    """

    reads_target_from_scores = True
    """Whether the target's logit may come from the scores of all classes instead of a separate product."""

    def __init__(
        self, raw_PD: Tensor, table: Table, target_P: Tensor, weight_P: Tensor, comparison: Comparison
    ) -> None:
        self.table = table
        self.comparison = comparison
        self.tau = comparison.temperature
        self.cosine = comparison.logit == "cosine"
        self.target_P = target_P
        self.weight_P = weight_P
        P, D = raw_PD.shape
        self.o_EP = raw_PD.new_empty((D if self.cosine else D + 1, P))
        self.o_EP[D:] = 1
        self.o_DP = self.o_EP[:D].copy_(raw_PD.T)
        self.norm_P = _lengths(self.o_DP).clamp_(min=_NORM_EPS)
        self.o_DP.div_(self.norm_P)
        self.sums_P = torch.zeros_like(weight_P)  # sums of the negatives' exponentials
        candidates = comparison.candidates
        self.target_among_candidates = (
            self.reads_target_from_scores and self.cosine and candidates is not None and candidates.drawn_S is None
        )
        if self.target_among_candidates:
            self.z_target_P = torch.empty_like(weight_P)
        else:
            self._score_target()
        # Candidates write all of it; nearest classes add to it.
        self.grad_o_DP = torch.zeros_like(self.o_DP) if candidates is None else torch.empty_like(self.o_DP)
        self.compare()
        self.loss = self._finish()

    def _score_target(self) -> None:
        """Computes the target's logit, and its gradients along o and along e."""
        target_DP = self.table.rows_DC[:, self.target_P]
        if self.cosine:
            self.z_target_P = (self.o_DP * target_DP).sum(0).mul_(self.tau * LOG2E)
            self.slope_o_DP, self.slope_e_DP = target_DP.mul_(self.tau), self.o_DP * self.tau
        else:
            away_DP = target_DP.neg_().add_(self.o_DP)
            distance_P = _lengths(away_DP)
            self.z_target_P = distance_P * (-self.tau * LOG2E)
            self.slope_e_DP = away_DP.mul_(self.tau / distance_P.clamp_(min=MIN_SQUARED_DISTANCE**0.5))
            self.slope_o_DP = -self.slope_e_DP

    def grad_raw(self) -> Tensor:
        """Returns the gradient of the embeddings before normalization, which removes the part along o: (P, D)."""
        radial_P = (self.grad_o_DP * self.o_DP).sum(0)
        return self.grad_o_DP.addcmul_(self.o_DP, radial_P, value=-1).div_(self.norm_P).T.contiguous()

    def compare(self) -> None:
        """Sets the sums of the negatives' exponentials and their part of the gradients."""
        candidates, num_nearest = self.comparison.candidates, self.comparison.negatives.nearest
        top_P1 = None
        if num_nearest:
            cosine_PK, ids_PK = nearest_classes(
                self.o_DP.T,
                self.table.rows_DC,
                num_nearest,
                exclude_P=self.target_P,
                tile_bytes=self.comparison.tile_bytes,
            )
            weight_PK, distance_PK, top_P1 = self.weigh_nearest(cosine_PK)
        elif 2 * self.tau > SAFE_EXPONENT:
            top_P1 = self._highest(candidates)
            if not self.target_among_candidates:
                self.z_target_P -= top_P1[:, 0]
        if candidates is not None:
            self._compare_with_candidates(candidates, top_P1, ids_PK if num_nearest else None)
        if num_nearest and self.table.wants_grad:
            self._add_gradients_of_nearest(weight_PK, distance_PK, ids_PK)

    def add_target_gradient(self, factor_P: Tensor) -> None:
        """Adds the target's part of the table's gradient: `slope_e_DP` times the factor."""
        self.table.scatter_add(self.target_P, self.slope_e_DP.mul_(factor_P))

    def _finish(self) -> Tensor:
        """Returns the loss from the sums, and adds the target's part of the gradients if it is not there yet."""
        if self.table.wants_grad and not self.target_among_candidates:
            factor_P = -self.sums_P / (self.sums_P + self.z_target_P.exp2()) * self.weight_P
            self.grad_o_DP.addcmul_(factor_P, self.slope_o_DP)
            self.add_target_gradient(factor_P)
        # log(1 + sums / exp z) keeps its digits if a pixel is nearly right and the loss is tiny.
        return torch.dot(F.softplus((self.sums_P.log2() - self.z_target_P) / LOG2E), self.weight_P)

    def weigh_nearest(self, cosine_PK: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Computes exponentials of each pixel's own negatives relative to the highest logit, and starts the sums with theirs.

        Returns:
            The exponentials, distances times tau log2(e) (None for cosines), and the highest logits (P, 1), which are subtracted
            from the target's.
        """
        z_PK, distance_PK = self._from_cosine(cosine_PK)
        top_P1 = torch.maximum(z_PK.amax(1, keepdim=True), self.z_target_P[:, None])
        self.z_target_P -= top_P1[:, 0]
        weight_PK = z_PK.sub_(top_P1).exp2_()
        torch.sum(weight_PK, 1, out=self.sums_P)
        return weight_PK, distance_PK, top_P1

    def _from_cosine(self, cosine: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns logits and, for distance logits, tau log2(e) times the distances; it works in place."""
        scale = self.tau * LOG2E
        if self.cosine:
            return cosine.mul_(scale), None
        distance = cosine.mul_(-2).add_(2).clamp_(min=MIN_SQUARED_DISTANCE).sqrt_().mul_(scale)
        return -distance, distance

    def _highest(self, candidates: Candidates | None) -> Tensor:
        """Returns the highest logit of the target and the candidates that a pixel is compared with, (P, 1)."""
        assert candidates is not None
        # If a pixel is compared with all classes, the search may find the target too.
        exclude_P = None if self.target_among_candidates else candidates.left_out(self.target_P)
        cosine_P1, _ = nearest_classes(
            self.o_DP.T, candidates.transposed_DS, 1, exclude_P=exclude_P, tile_bytes=self.comparison.tile_bytes
        )
        z_P1, _ = self._from_cosine(cosine_P1)
        return z_P1 if self.target_among_candidates else torch.maximum(z_P1, self.z_target_P[:, None])

    def _compare_with_candidates(
        self, candidates: Candidates, top_P1: Tensor | None, nearest_PK: Tensor | None
    ) -> None:
        """Adds to `sums_P` and to the gradients, in tiles of pixels; at most two matrices of scores are alive at once."""
        size = tile_pixels(len(candidates), self.sums_P, self.comparison.tile_bytes)
        for tile in tiles(len(self.sums_P), size):
            z_PS, distance_PS = self._logits(candidates.products(self.o_EP[:, tile].T), candidates)
            if top_P1 is not None:
                z_PS.sub_(top_P1[tile])
            if self.target_among_candidates:
                self.z_target_P[tile] = z_PS.gather(1, self.target_P[tile, None])[:, 0]
            weight_PS = z_PS.exp2_()
            if nearest_PK is None:
                weight_PS.scatter_(1, candidates.left_out(self.target_P[tile])[:, None], 0)
            else:
                weight_PS.mul_(self._used(candidates, tile, nearest_PK[tile]))
            self.sums_P[tile] += weight_PS.sum(1)
            if not self.table.wants_grad:
                continue
            if distance_PS is not None:
                weight_PS.div_(distance_PS)
            if self.target_among_candidates:
                # The gradient along the target is minus the sum of all others.
                weight_PS.scatter_(1, self.target_P[tile, None], -self.sums_P[tile, None])
            # Per-pixel factors are applied to D x P matrices, not to the P x S one.
            factor_P = self.gradient_factor(tile)
            torch.mul(candidates.transposed_DS @ weight_PS.T, factor_P, out=self.grad_o_DP[:, tile])
            scaled_DP = self.o_DP[:, tile] * factor_P
            if candidates.drawn_S is None:
                self.table.grad_DC.addmm_(scaled_DP, weight_PS)
            else:
                self.table.scatter_add(candidates.drawn_S, scaled_DP @ weight_PS)

    def _used(self, candidates: Candidates, tile: slice, nearest_PK: Tensor) -> Tensor:
        """Returns which drawn classes each pixel of a tile is compared with besides its nearest: bool (P, S)."""
        assert candidates.drawn_S is not None
        free_PS = candidates.drawn_S != self.target_P[tile, None]
        for nearest_P in nearest_PK.unbind(1):
            free_PS &= candidates.drawn_S != nearest_P[:, None]
        return free_PS & (free_PS.cumsum(1) <= self.comparison.negatives.from_drawn)

    def _add_gradients_of_nearest(self, weight_PK: Tensor, distance_PK: Tensor | None, ids_PK: Tensor) -> None:
        """Adds the gradients of the pixels' own negatives, in tiles of K x D values per pixel."""
        if distance_PK is not None:
            weight_PK.div_(distance_PK)
        K, D = weight_PK.shape[1], len(self.o_DP)
        for tile in tiles(len(ids_PK), tile_pixels(K * D, self.o_DP, self.comparison.tile_bytes)):
            scaled_PK = weight_PK[tile] * self.gradient_factor(tile)[:, None]
            grad_PD = torch.bmm(scaled_PK[:, None], self.table.rows_CD[ids_PK[tile]])[:, 0]
            self.grad_o_DP[:, tile] += grad_PD.T
            scaled_DPK = self.o_DP[:, tile, None] * scaled_PK
            self.table.scatter_add(ids_PK[tile].reshape(-1), scaled_DPK.flatten(1))

    def _logits(self, products_PS: Tensor, candidates: Candidates) -> tuple[Tensor, Tensor | None]:
        """Turns `Candidates.products` into logits and, for distance logits, tau log2(e) times the distances."""
        if self.cosine:
            return products_PS, None
        distance_PS = products_PS.clamp_(min=MIN_SQUARED_DISTANCE * (self.tau * LOG2E) ** 2).sqrt_()
        return candidates.negated(distance_PS), distance_PS

    def gradient_factor(self, tile: slice) -> Tensor:
        """Returns the factor of the negatives' gradients, from their sums of exponentials: (P,)."""
        # d z / d cosine is tau for cosines and tau / distance for distances, which are stored times tau log2(e).
        slope = self.tau if self.cosine else self.tau * self.tau * LOG2E
        return slope * self.weight_P[tile] / (self.sums_P[tile] + self.z_target_P[tile].exp2())


def _lengths(vectors_DP: Tensor) -> Tensor:
    # torch.linalg.vector_norm along the first dimension took a third of the whole loss at 19 classes.
    return vectors_DP.square().sum(0).sqrt_()
