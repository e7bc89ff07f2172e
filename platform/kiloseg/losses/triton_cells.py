"""Computes the embedding loss over shared candidates on a GPU, with Triton kernels that take scores before upsampling.

The products of embeddings and table are taken at feature cells, of which there are a sixteenth as many as pixels at stride 4, and
upsampled inside a tile. `kiloseg.losses.reference_cells` does the same with torch's operations; it is the reference. Triton is
imported only when it is used.

Shapes: B batch, b images of a block, H W pixels, h w feature cells, D embedding, C classes, S candidates shared by all pixels, N
patches of P pixels and k cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.losses.negatives import ResolvedNegatives
from kiloseg.losses.reference import Comparison
from kiloseg.losses.table import Table
from kiloseg.ops.logits import LOG2E
from kiloseg.ops.triton import pays_at_cells

if TYPE_CHECKING:
    from kiloseg.ops.triton.cells import Patches
    from kiloseg.ops.triton.cells_targets import Targets


def pays(pixels_BDhw: Tensor, size: tuple[int, int], negatives: ResolvedNegatives, num_classes: int) -> bool:
    """Whether scores at cells cost less than scores at pixels; the number of classes does not matter."""
    return negatives.shares and pays_at_cells(pixels_BDhw, size)


def nearest_search(
    pixels_BDhw: Tensor, rows_CD: Tensor, size: tuple[int, int], negatives: ResolvedNegatives
) -> NearestSearch | None:
    """Returns the search for the pixels' nearest classes at cells; None if there is none, or if it costs more than at pixels."""
    if negatives.nearest == 0 or not pays_at_cells(pixels_BDhw, size):
        return None
    return NearestSearch(pixels_BDhw, rows_CD, size, negatives.nearest)


def embedding_loss(
    pixels_BDhw: Tensor,
    labels_BHW: Tensor,
    weight_BHW: Tensor,
    table: Table,
    comparison: Comparison,
) -> tuple[Tensor, Tensor | None]:
    """Returns the loss and the gradient of the embeddings, and adds to the gradient of the table.

    Besides these, memory holds the map of a block's images in pieces (6 bytes a value) and its gradient, the candidates in pieces
    and their gradient, and for a band of patches about 15 numbers a pixel and the gradients of the patches' cells: 31 MiB for 2,048
    patches at D = 128. A block has `kiloseg.ops.triton.BLOCK_PATCHES` patches, but at least one image, and a band at least one row.

    Args:
        pixels_BDhw: the embeddings at feature cells, float32.
        labels_BHW: int64; any class where the weight is 0.
        weight_BHW: float32, the share of each pixel in the loss.
        table: the class table, which keeps its gradient by class.
        comparison: the negatives; they must share candidates.
    """
    from kiloseg.ops.triton.cells import blocks
    from kiloseg.ops.triton.cells_map import add_patches

    _, D, h, w = pixels_BDhw.shape
    size = (labels_BHW.shape[1], labels_BHW.shape[2])
    loss = pixels_BDhw.new_zeros(())
    grad_pixels = torch.empty_like(pixels_BDhw) if table.wants_grad else None
    # Triton starts kernels on the current device.
    with torch.cuda.device_of(pixels_BDhw):
        parts = _Parts(table, comparison)
        for images, bands in blocks(pixels_BDhw, size):
            labels_bHW, weight_bHW = labels_BHW[images].contiguous(), weight_BHW[images].contiguous()
            grad_bhwD = pixels_BDhw.new_zeros(len(labels_bHW), h, w, D)
            for patches in bands:
                part, grad_NkD = parts.compute(patches, labels_bHW, weight_bHW)
                loss += part
                if grad_NkD is not None:
                    add_patches(grad_bhwD, grad_NkD, patches)
            if grad_pixels is not None:
                grad_pixels[images] = grad_bhwD.permute(0, 3, 1, 2)
        parts.finish()
    return loss, grad_pixels


class _Parts:
    """Computes loss and gradients of bands of patches, and keeps the gradient of the candidates until `finish`."""

    def __init__(self, table: Table, comparison: Comparison) -> None:
        from kiloseg.ops.triton.scores import pieces

        assert comparison.candidates is not None
        self.table = table
        self.tau = comparison.temperature
        self.cosine = comparison.logit == "cosine"
        self.candidates = comparison.candidates
        self.pieces_3SW = pieces(self.candidates.rows_SD)
        self.drawn_S = self.candidates.drawn_S
        if table.wants_grad:
            self.grad_SD = table.grad_CD if self.drawn_S is None else torch.zeros_like(self.candidates.rows_SD)

    def compute(self, patches: Patches, labels_bHW: Tensor, weight_bHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the loss of a band and the gradients of the cells of its patches (N, k, D), None if they are not wanted."""
        from kiloseg.ops.triton.cells_softmax import cells_softmax_sums
        from kiloseg.ops.triton.cells_targets import score_targets

        targets = score_targets(
            patches,
            self.table.rows_CD,
            labels_bHW,
            weight_bHW,
            self.candidates.column_C,
            self.drawn_S,
            self.tau,
            cosine=self.cosine,
        )
        sums_NP, dots_NP, top_NP = cells_softmax_sums(patches, self.pieces_3SW, targets, self.tau, cosine=self.cosine)
        z_target_NP = targets.logit if top_NP is None else targets.logit - top_NP
        # log(1 + sums / exp z) keeps its digits if a pixel is nearly right and the loss is tiny.
        losses_NP = F.softplus((sums_NP.log2() - z_target_NP) / LOG2E)
        loss = torch.dot(losses_NP.view(-1), targets.weight.view(-1))
        if not self.table.wants_grad:
            return loss, None
        factor_NP = targets.weight * targets.inverse / (sums_NP + z_target_NP.exp2())
        factor_NP *= self.tau if self.cosine else self.tau * self.tau * LOG2E
        return loss, self._gradients(patches, labels_bHW, targets, (sums_NP, dots_NP, top_NP), factor_NP)

    def _gradients(
        self,
        patches: Patches,
        labels_bHW: Tensor,
        targets: Targets,
        sums: tuple[Tensor, Tensor, Tensor | None],
        factor_NP: Tensor,
    ) -> Tensor:
        from kiloseg.ops.triton.cells_gradient import Weights, candidates_gradient, cells_gradient
        from kiloseg.ops.triton.cells_targets import add_pixel_gradients

        sums_NP, dots_NP, top_NP = sums
        D = self.table.rows_CD.shape[1]
        # The gradient along the target is minus the sum of all others.
        own_NP = -sums_NP * targets.slope
        radial_NP = -factor_NP * targets.inverse * (dots_NP + own_NP * targets.cosine)
        outside_NP = None if self.drawn_S is None else own_NP * targets.outside * factor_NP
        inside_NP = own_NP * (1 - targets.outside)
        weights = Weights(targets.inverse, targets.left_out, top_NP, factor_NP, inside_NP)
        grad_NkD = cells_gradient(patches, self.pieces_3SW, weights, self.tau, D, cosine=self.cosine)
        self.grad_SD += candidates_gradient(patches, self.pieces_3SW, weights, self.tau, D, cosine=self.cosine)
        add_pixel_gradients(
            grad_NkD, self.table.grad_CD, patches, self.table.rows_CD, labels_bHW, radial_NP, outside_NP
        )
        return grad_NkD

    def finish(self) -> None:
        """Adds the gradient of drawn candidates to that of the table."""
        if self.drawn_S is not None and self.table.wants_grad:
            self.table.grad_CD.index_add_(0, self.drawn_S, self.grad_SD)


class NearestSearch:
    """Finds the classes nearest to the pixels of a block of rows, from scores at feature cells.

    Memory holds the map of one image and the table, both in 6 bytes a value.

    Args:
        pixels_BDhw: the embeddings at feature cells, float32.
        rows_CD: the table, contiguous float32, rows of unit length.
        size: the size (H, W) of the images in pixels.
        count: the number K of classes that are sought.
    """

    def __init__(self, pixels_BDhw: Tensor, rows_CD: Tensor, size: tuple[int, int], count: int) -> None:
        from kiloseg.ops.triton.scores import pieces

        self.pixels_BDhw = pixels_BDhw
        self.size = size
        self.count = count
        with torch.cuda.device_of(pixels_BDhw):
            self.classes = pieces(rows_CD)
        self.image = -1

    def find(self, image: int, rows: slice, target_P: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the cosines and ids (P, K), in any order, of the classes nearest to the pixels of `rows`, but their targets."""
        from kiloseg.ops.triton.cells import patches_of_rows
        from kiloseg.ops.triton.cells_search import search_patches
        from kiloseg.ops.triton.scores import pieces

        _, D, h, w = self.pixels_BDhw.shape
        with torch.cuda.device_of(self.pixels_BDhw):
            if image != self.image:
                self.image = image
                self.cells = pieces(self.pixels_BDhw[image].permute(1, 2, 0).reshape(-1, D).contiguous())
            shape = (1, rows.stop - rows.start, self.size[1], self.count)
            ids = torch.empty(shape, dtype=torch.int64, device=target_P.device)
            cosines = torch.empty(shape, device=target_P.device)
            patches = patches_of_rows(self.cells, (h, w), self.size, rows)
            search_patches(patches, self.classes, ids, cosines, exclude_bHW=target_P.view(shape[:3]))
        return cosines.view(-1, self.count), ids.view(-1, self.count)
