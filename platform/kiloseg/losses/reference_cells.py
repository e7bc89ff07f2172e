"""Computes loss and gradients over shared candidates with torch's own operations, from scores taken before upsampling.

Upsampling is linear: the score of a pixel's embedding u = sum_k m_k z_k with a class e is sum_k m_k z_k.e, where z_k are the few
feature cells around the pixel and m_k its weights of interpolation. So products with the table are taken at the cells, of which
there are a sixteenth as many as pixels at stride 4. The image is cut into patches, whose scores are one product of (P, k) weights
of interpolation and (k, T) scores of cells. Any per-pixel factor of the scores is multiplied into the pixel's k weights.

Shapes: B batch, H W pixels, h w feature cells, P pixels and k cells of a patch, D embedding, S candidates shared by all pixels, T
candidates of a tile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.losses.negatives import ResolvedNegatives
from kiloseg.losses.reference import BlockLoss, Comparison
from kiloseg.losses.table import Candidates, Table
from kiloseg.ops.logits import LOG2E, SAFE_EXPONENT
from kiloseg.ops.tiles import tile_pixels, tiles
from kiloseg.ops.upsampling import BlockwiseUpsampling, blocks_of_patches, num_pixels, patches

PATCH_PIXELS = 128
"""The target number of pixels in a patch."""

BLOCK_BYTES = 2**19
"""The target size of one P x D matrix of a block's pixels, in bytes."""

MIN_DIM = 128
"""The fewest dimensions for which this path is chosen. At 1,284 classes and stride 4 it took 0.83 to 0.97 x as long at 128 (see
benchmarks/README.md)."""

MIN_FACTOR = 16
"""The fewest pixels per feature cell. It paid off at stride 4, which has 16; at stride 2, which has 4, it took 1.27 x as long."""

MIN_CANDIDATES = 256
"""The fewest candidates. It paid off with 256; with 19 it took twice as long, since calls cost more than arithmetic there."""


def pays(pixels_BDhw: Tensor, size: tuple[int, int], negatives: ResolvedNegatives, num_classes: int) -> bool:
    """Whether scores at cells cost less than scores at pixels. It is False on a GPU, where this has not been measured."""
    _, D, h, w = pixels_BDhw.shape
    return (
        negatives.shares
        and pixels_BDhw.is_cpu
        and D >= MIN_DIM
        and (negatives.drawn or num_classes) >= MIN_CANDIDATES
        and size[0] * size[1] >= MIN_FACTOR * h * w
    )


def embedding_loss(
    pixels_BDhw: Tensor,
    labels_BHW: Tensor,
    weight_BHW: Tensor,
    table: Table,
    comparison: Comparison,
) -> tuple[Tensor, Tensor | None]:
    """Returns the loss and the gradient of the embeddings, and adds to the gradient of the table.

    Besides these, memory holds two matrices of scores of `tile_bytes` (at least a patch and 16 candidates), the candidates'
    gradient if they are drawn, and about ten matrices of P x D values of a block, each of BLOCK_BYTES (at least a patch).

    Args:
        pixels_BDhw: the embeddings at feature cells.
        labels_BHW: int64; any class where the weight is 0.
        weight_BHW: the share of each pixel in the loss.
        table: the class table.
        comparison: the negatives; they must share candidates.
    """
    candidates = comparison.candidates
    assert candidates is not None
    B, D, h, w = pixels_BDhw.shape
    H, W = labels_BHW.shape[1:]
    upsampling = BlockwiseUpsampling((h, w), (H, W), pixels_BDhw)
    loss = pixels_BDhw.new_zeros(())
    grad_pixels = grad_DS = None
    if table.wants_grad:
        grad_pixels = torch.zeros_like(pixels_BDhw)
        grad_DS = table.grad_DC if candidates.drawn_S is None else torch.zeros_like(candidates.transposed_DS)
    most = min(
        BLOCK_BYTES // (pixels_BDhw.element_size() * D),
        tile_pixels(len(candidates), pixels_BDhw, comparison.tile_bytes),
    )
    blocks = blocks_of_patches(B, patches((h, w), (H, W), PATCH_PIXELS), most)
    # All blocks use one tile size, set by the block with the most pixels, which then has the highest peak.
    tile_candidates = tile_pixels(num_pixels(blocks[0]), pixels_BDhw, comparison.tile_bytes)
    for one in tiles(len(blocks), 1):
        block = blocks[one.start]
        cells_NkD = torch.stack([pixels_BDhw[image, :, y[1], x[1]].flatten(1).T for image, (y, x) in block])
        part = BlockLossAtCells(
            cells_NkD,
            torch.stack([upsampling.patch(patch) for _, patch in block]),
            grad_DS,
            tile_candidates,
            table,
            torch.cat([labels_BHW[image, y[0], x[0]].reshape(-1) for image, (y, x) in block]),
            torch.cat([weight_BHW[image, y[0], x[0]].reshape(-1) for image, (y, x) in block]),
            comparison,
        )
        loss += part.loss
        if grad_pixels is not None:
            for (image, (y, x)), grad_kD in zip(block, part.grad_cells(), strict=True):
                target_Dij = grad_pixels[image, :, y[1], x[1]]
                target_Dij += grad_kD.T.view(target_Dij.shape)
    if candidates.drawn_S is not None and grad_DS is not None:
        table.scatter_add(candidates.drawn_S, grad_DS)
    return loss, grad_pixels


class BlockLossAtCells(BlockLoss):
    """Computes loss and gradients of N patches of P pixels, each upsampled from k feature cells.

    The target is always computed separately, at the pixel. The candidates' gradient reaches the cells and the table through
    weights that are reduced to (k, T). Normalization removes the part along o, -(sum_c g_c s_c) o / ||u||, which is added at the
    pixel.

    Args:
        cells_NkD: the embeddings of the cells.
        interpolation_NPk: the share of each cell in each pixel.
        grad_DS: the gradient of the candidates, which is added to; None if no gradient is wanted.
        tile_candidates: the largest number of candidates in a tile.
        table: the class table.
        target_P: the class of the pixels, patch after patch, int64; any class where `weight_P` is 0.
        weight_P: the share of each pixel in the loss.
        comparison: the negatives.
    """

    reads_target_from_scores = False

    def __init__(
        self,
        cells_NkD: Tensor,
        interpolation_NPk: Tensor,
        grad_DS: Tensor | None,
        tile_candidates: int,
        table: Table,
        target_P: Tensor,
        weight_P: Tensor,
        comparison: Comparison,
    ) -> None:
        self.cells_NkD = cells_NkD
        self.interpolation_NPk = interpolation_NPk
        self.grad_DS = grad_DS
        self.tile_candidates = tile_candidates
        super().__init__((interpolation_NPk @ cells_NkD).flatten(0, 1), table, target_P, weight_P, comparison)

    def compare(self) -> None:
        """Sets the sums of the negatives' exponentials and their part of the gradients."""
        candidates = self.comparison.candidates
        assert candidates is not None
        self.grad_o_DP.zero_()  # the target's part is added to it
        self.left_out_P = candidates.left_out(self.target_P)
        # Where cells cancel each other, as opposite ones do halfway, a score is only as exact as those of the cells.
        exact_NP1 = self.interpolation_NPk @ torch.linalg.vector_norm(self.cells_NkD, dim=2, keepdim=True)
        exact_P = exact_NP1.view(-1).mul_(8 * torch.finfo(exact_NP1.dtype).eps)
        self.length_NP1 = torch.maximum(self.norm_P, exact_P).view_as(exact_NP1)
        self.to_scores_NPk = self.interpolation_NPk / self.length_NP1
        self.scored_NkE = self.cells_NkD
        if not self.cosine:
            # One extra cell, with weight 1 in every pixel, carries the constant of a squared distance.
            self.to_scores_NPk = F.pad(self.to_scores_NPk, (0, 1), value=1.0)
            self.scored_NkE = F.pad(self.cells_NkD, (0, 1, 0, 1))
            self.scored_NkE[:, -1, -1] = 1
        S, size = len(candidates), self.tile_candidates
        self.top_P1: Tensor | None = None
        if 2 * self.tau > SAFE_EXPONENT:
            top_P = self.z_target_P.clone()
            for tile in tiles(S, size):
                z_PT, _, _ = self._logits_of(candidates, tile)
                top_P = torch.maximum(top_P, self._set_left_out(z_PT, tile, -torch.inf).amax(1))
            self.z_target_P -= top_P
            self.top_P1 = top_P[:, None]
        self.along_NP1 = torch.zeros_like(self.length_NP1)
        self.grad_kD = torch.zeros_like(self.cells_NkD).flatten(0, 1)
        keeps = size >= S
        for tile in tiles(S, size):
            weights = self._weigh(candidates, tile)
            self.sums_P += weights[0].sum(1)
            if keeps and self.table.wants_grad:
                self._add_gradients(candidates, tile, *weights)
        if not keeps and self.table.wants_grad:
            for tile in tiles(S, size):
                self._add_gradients(candidates, tile, *self._weigh(candidates, tile))

    def grad_cells(self) -> Tensor:
        """Returns the gradient of the cells, (N, k, D)."""
        # Scores are premultiplied by the factor that turns a cosine into a logit or a squared distance.
        scale = self.tau * LOG2E if self.cosine else -2 * (self.tau * LOG2E) ** 2
        along_NP1 = self.along_NP1 * self._factor() / (scale * self.length_NP1)
        grad_PD = self.grad_raw().addcmul_(self.o_DP.T, along_NP1.view(-1, 1), value=-1)
        return torch.baddbmm(
            self.grad_kD.view_as(self.cells_NkD),
            self.interpolation_NPk.mT,
            grad_PD.view(*self.interpolation_NPk.shape[:2], -1),
        )

    def _factor(self) -> Tensor:
        """Returns the factor of a pixel's weights for the gradient of u, without the part along u: (N, P, 1)."""
        return self.gradient_factor(slice(None)).view_as(self.length_NP1) / self.length_NP1

    def _logits_of(self, candidates: Candidates, tile: slice) -> tuple[Tensor, Tensor | None, Tensor]:
        """Returns logits (P, T) of all patches, tau log2(e) times distances if those are wanted, and scores of cells (N, k, T)."""
        scores_kT = self.scored_NkE.flatten(0, 1) @ candidates.scaled_ES[:, tile]
        N, P, k = self.to_scores_NPk.shape
        scores_NkT = scores_kT.view(N, k, -1)
        out_NPT = candidates.buffer(N, P, scores_NkT.shape[2])
        torch.bmm(self.to_scores_NPk, scores_NkT, out=out_NPT)
        return *self._logits(out_NPT.flatten(0, 1), candidates), scores_NkT

    def _weigh(self, candidates: Candidates, tile: slice) -> tuple[Tensor, Tensor | None, Tensor]:
        """Returns exponentials of the logits, 0 for what a pixel leaves out, and the other results of `_logits_of`."""
        z_PT, distance_PT, scores_NkT = self._logits_of(candidates, tile)
        if self.top_P1 is not None:
            z_PT.sub_(self.top_P1)
        return self._set_left_out(z_PT.exp2_(), tile, 0.0), distance_PT, scores_NkT

    def _set_left_out(self, values_PT: Tensor, tile: slice, value: float) -> Tensor:
        """Sets the value of the candidate that a pixel leaves out, if it lies in the tile; it works in place."""
        T = values_PT.shape[1]
        place_P = self.left_out_P - tile.start
        column_P1 = place_P.clamp(0, T - 1)[:, None]
        inside_P1 = ((place_P >= 0) & (place_P < T))[:, None]
        return values_PT.scatter_(1, column_P1, values_PT.gather(1, column_P1).masked_fill_(inside_P1, value))

    def _add_gradients(
        self, candidates: Candidates, tile: slice, weight_PT: Tensor, distance_PT: Tensor | None, scores_NkT: Tensor
    ) -> None:
        assert self.grad_DS is not None
        if distance_PT is not None:
            weight_PT.div_(distance_PT)
        N, P, k = self.interpolation_NPk.shape
        weight_NPT = weight_PT.view(N, P, -1)
        narrowed_kT = torch.bmm((self.interpolation_NPk * self._factor()).mT, weight_NPT).flatten(0, 1)
        along_NPk = torch.bmm(weight_NPT, scores_NkT[:, :k].mT).mul_(self.interpolation_NPk)
        self.along_NP1 += along_NPk.sum(2, keepdim=True)
        self.grad_kD.addmm_(narrowed_kT, candidates.rows_SD[tile])
        self.grad_DS[:, tile].addmm_(self.cells_NkD.flatten(0, 1).T, narrowed_kT)
