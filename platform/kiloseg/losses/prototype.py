"""Computes the loss of a nonparametric classifier: each class has k prototypes that are means of pixels and get no gradient.

Source: "Rethinking Semantic Segmentation: A Prototype View", https://arxiv.org/abs/2203.15102. The score of a class is the cosine
of its nearest prototype. A pixel is charged the cross-entropy of these scores; by its `prototype_terms` it is also drawn to the
prototype of its class to which it is assigned, and away from all others.

Shapes: B batch, H W pixels, h w feature cells, P pixels or cells, D embedding, C classes, k prototypes of a class, S = C * k.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kiloseg.config import Negatives
from kiloseg.losses import triton_backend
from kiloseg.losses.embedding import BLOCK_BYTES, check_batch, embedding_cross_entropy
from kiloseg.losses.pixel_weights import mean_weights
from kiloseg.losses.row_blocks import loss_by_rows
from kiloseg.ops.tiles import tile_pixels, tiles

SMOOTHNESS = 0.05
"""The paper's kappa: the smaller it is, the closer an assignment is to that of lowest cost."""

SINKHORN_STEPS = 3
"""The number of times that shares are balanced over prototypes and then over pixels, as in the paper."""


class PrototypeTerms(NamedTuple):
    """Holds what `prototype_terms` finds at feature cells."""

    contrast: Tensor
    """A scalar: the mean cross-entropy of each labeled cell's own prototype among all C * k."""
    distance: Tensor
    """A scalar: the mean of (1 - o.p)^2 over labeled cells o and their prototypes p."""
    row_Bhw: Tensor
    """The row c * k + j of each cell's prototype j of its class c: int64 (B, h, w); -1 if it has no label."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def prototype_cross_entropy(
    pixels_BDhw: Tensor,
    rows_CkD: Tensor,
    labels_BHW: Tensor,
    *,
    temperature: float = 20.0,
    ignore_index: int = -1,
    tile_bytes: int | None = None,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    """Computes the mean cross-entropy over labeled pixels, where the score of a class is the cosine of its nearest prototype.

    A pixel o of class t is charged -log(exp z_t / sum_c exp z_c) with z_c = tau max_j o.p_cj. Embeddings are upsampled bilinearly
    and then normalized, as `embedding_cross_entropy` does; for one prototype a class, this is that loss with all negatives, and
    its kernels compute it. For more, scores of a tile of pixels are computed with torch's operations.

    Memory: B*D*h*w for the gradient, the prototypes twice more, h*W*D, up to three matrices of `tile_bytes` and a few of
    BLOCK_BYTES, whatever C, k and H*W are (at least 16 pixels' C * k scores, or one row's W*D values). The gradient is computed in
    the forward pass, and only once.

    Args:
        pixels_BDhw: the output of the network, floating point.
        rows_CkD: the prototypes, which get no gradient; they are normalized here.
        labels_BHW: int64, 0 to C - 1, or `ignore_index`.
        temperature: the factor tau, above 0.
        ignore_index: the label of pixels that do not count.
        tile_bytes: the target size of one matrix of scores in bytes; None means kiloseg.ops.tiles.TILE_BYTES.
        class_weights_C: the weight of every class in the mean over pixels; None: 1 for all.

    Returns:
        A scalar. It is 0, with zero gradients, if no pixel is labeled.

    Raises:
        ValueError: Shapes do not match, or labels are not int64 or not classes.
    """
    if rows_CkD.dim() != 3:
        raise ValueError(f"prototypes of shape {tuple(rows_CkD.shape)}: expected (C, k, D)")
    rows_CkD = rows_CkD.detach()
    if rows_CkD.shape[1] == 1:
        return embedding_cross_entropy(
            pixels_BDhw,
            rows_CkD[:, 0],
            labels_BHW,
            negatives=Negatives(kind="all"),
            temperature=temperature,
            ignore_index=ignore_index,
            tile_bytes=tile_bytes,
            class_weights_C=class_weights_C,
        )
    check_batch(pixels_BDhw, rows_CkD[:, 0], labels_BHW, ignore_index)
    wide = torch.float64 if pixels_BDhw.dtype == torch.float64 else torch.float32
    with torch.autocast(pixels_BDhw.device.type, enabled=False):
        known_BHW = labels_BHW != ignore_index
        weights_C = None if class_weights_C is None else class_weights_C.to(pixels_BDhw.device, wide)
        weights_BHW, whole = mean_weights(weights_C, labels_BHW, known_BHW)
        setting = _Setting(F.normalize(rows_CkD.to(wide), dim=2), temperature, tile_bytes)
        loss: Tensor = _PrototypeCrossEntropy.apply(
            pixels_BDhw.to(wide), labels_BHW.where(known_BHW, 0), weights_BHW.to(wide) / whole, setting
        )
    return loss


class _Setting(NamedTuple):
    rows_CkD: Tensor
    temperature: float
    tile_bytes: int | None


class _PrototypeCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels_BDhw: Tensor, target_BHW: Tensor, weight_BHW: Tensor, setting: _Setting) -> Tensor:
        wants_grad = ctx.needs_input_grad[0]
        scores = _TileScores(setting)

        def block_loss(image: int, rows: slice, raw_PD: Tensor) -> tuple[Tensor, Tensor | None]:
            target_P, weight_P = (each[image, rows].reshape(-1) for each in (target_BHW, weight_BHW))
            return scores.loss(raw_PD, target_P, weight_P, wants_grad=wants_grad)

        block_bytes = BLOCK_BYTES if pixels_BDhw.is_cpu else triton_backend.BLOCK_BYTES
        height, width = target_BHW.shape[1:]
        loss, grad_pixels = loss_by_rows(pixels_BDhw, (height, width), block_bytes, block_loss, wants_grad=wants_grad)
        if grad_pixels is not None:
            ctx.save_for_backward(grad_pixels)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (grad_pixels,) = ctx.saved_tensors
        return grad_pixels * grad_loss, None, None, None


class _TileScores:
    """Computes loss and gradient of a block of pixels, tile by tile of about `tile_bytes`, in one buffer."""

    def __init__(self, setting: _Setting) -> None:
        self.rows_kCD = setting.rows_CkD.transpose(0, 1).contiguous()
        self.temperature = setting.temperature
        self.tile_bytes = setting.tile_bytes
        self._scores = self.rows_kCD.new_empty(0)

    def loss(
        self, raw_PD: Tensor, target_P: Tensor, weight_P: Tensor, *, wants_grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the sum of the weighted losses, and the gradient of the embeddings before normalization if it is wanted."""
        k, C, D = self.rows_kCD.shape
        rows_SD = self.rows_kCD.view(k * C, D)
        norm_P1 = torch.linalg.vector_norm(raw_PD, dim=1, keepdim=True).clamp_(min=1e-12)
        o_PD = raw_PD / norm_P1
        grad_PD = torch.empty_like(o_PD) if wants_grad else None
        loss = o_PD.new_zeros(())
        size = tile_pixels(k * C, o_PD, self.tile_bytes)
        if self._scores.numel() == 0:
            self._scores = o_PD.new_empty(min(size, len(o_PD)) * k * C)
        for tile in tiles(len(o_PD), size):
            num = tile.stop - tile.start
            scores_PS = torch.mm(o_PD[tile], rows_SD.T, out=self._scores[: num * k * C].view(num, k * C))
            # Classes lie in the innermost dimension, so that the maximum over prototypes reads and writes whole rows.
            best_PC, nearest_PC = scores_PS.view(num, k, C).max(1)
            logs_PC = best_PC.mul_(self.temperature).log_softmax(1)
            loss -= torch.dot(logs_PC.gather(1, target_P[tile, None])[:, 0], weight_P[tile])
            if grad_PD is None:
                continue
            share_PC = logs_PC.exp_()
            share_PC.scatter_add_(1, target_P[tile, None], share_PC.new_full((num, 1), -1.0))
            share_PC.mul_(self.temperature * weight_P[tile, None])
            # Only the nearest prototype of a class has a part in its score.
            scores_PS.zero_().view(num, k, C).scatter_(1, nearest_PC[:, None], share_PC[:, None])
            torch.mm(scores_PS, rows_SD, out=grad_PD[tile])
        if grad_PD is not None:
            radial_P1 = (grad_PD * o_PD).sum(1, keepdim=True)
            grad_PD.addcmul_(o_PD, radial_P1, value=-1).div_(norm_P1)
        return loss, grad_PD


def prototype_terms(
    pixels_BDhw: Tensor,
    rows_CkD: Tensor,
    labels_BHW: Tensor,
    *,
    temperature: float = 20.0,
    class_weights_C: Tensor | None = None,
) -> PrototypeTerms:
    """Assigns feature cells to the prototypes of their class, and computes the terms that draw them there.

    The contrast is the cross-entropy of tau o.p over all C * k prototypes p, in which the other prototypes of a pixel's class
    count as others; the distance is (1 - o.p)^2. Both are means over labeled cells, whose labels are those of the nearest pixels,
    as in the paper's code.

    Memory: a few times B*h*w*D, and what `embedding_cross_entropy` takes for B*h*w pixels and a table of C * k rows.

    Args:
        pixels_BDhw: the output of the network, floating point.
        rows_CkD: the prototypes, unit vectors, which get no gradient.
        labels_BHW: int64, 0 to C - 1, or -1 for ignore.
        temperature: the factor tau of the contrast, above 0.
        class_weights_C: the weight of every class in both means; None: 1 for all.
    """
    k, size = rows_CkD.shape[1], pixels_BDhw.shape[2:]
    # float32 holds all integers up to 2^24.
    cells_Bhw = F.interpolate(labels_BHW[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
    known_Bhw = cells_Bhw >= 0
    weights_C = None if class_weights_C is None else class_weights_C.to(pixels_BDhw.device)
    with torch.autocast(pixels_BDhw.device.type, enabled=False):
        wide_BDhw = pixels_BDhw if pixels_BDhw.dtype == torch.float64 else pixels_BDhw.float()
        rows_SD = rows_CkD.detach().to(wide_BDhw.dtype).flatten(0, 1)
        units_PD = F.normalize(wide_BDhw, dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        own_P = assign_prototypes(units_PD.detach(), rows_SD.view_as(rows_CkD), cells_Bhw.flatten())
        row_Bhw = (cells_Bhw * k + own_P.view_as(cells_Bhw)).where(known_Bhw, -1)
        contrast = embedding_cross_entropy(
            pixels_BDhw,
            rows_SD,
            row_Bhw,
            negatives=Negatives(kind="all"),
            temperature=temperature,
            class_weights_C=None if weights_C is None else weights_C.repeat_interleave(k),
        )
        weights_Bhw, whole = mean_weights(weights_C, cells_Bhw, known_Bhw)
        cosine_P = (units_PD * rows_SD[row_Bhw.flatten().clamp(min=0)]).sum(1)
        distance = torch.dot((1 - cosine_P).square(), weights_Bhw.flatten().to(cosine_P.dtype)) / whole
    return PrototypeTerms(contrast, distance, row_Bhw)


@torch.no_grad()
def assign_prototypes(units_PD: Tensor, rows_CkD: Tensor, labels_P: Tensor) -> Tensor:
    """Assigns pixels to the prototypes of their class by optimal transport, so that each prototype gets about as many.

    The shares exp(o.p / kappa) of a class's pixels in its prototypes are scaled in turn to equal sums over prototypes and to equal
    sums over pixels (Sinkhorn and Knopp), for all classes at once; a pixel goes to the prototype in which it has the largest share.

    Memory: P*k shares three times, (C + 1)*k sums, and the prototypes of a tile of pixels.

    Args:
        units_PD: the embeddings, unit vectors.
        rows_CkD: the prototypes, unit vectors.
        labels_P: int64, 0 to C - 1; negative labels are ignored.

    Returns:
        The number of the prototype, 0 to k - 1, int64 (P,); any number for pixels that are ignored.
    """
    C, k, D = rows_CkD.shape
    if k == 1:
        return torch.zeros_like(labels_P)
    share_Pk = units_PD.new_empty(len(units_PD), k)
    own_P = labels_P.clamp(min=0)
    for tile in tiles(len(units_PD), tile_pixels(k * D, units_PD)):
        torch.bmm(rows_CkD[own_P[tile]], units_PD[tile, :, None], out=share_Pk[tile, :, None])
    share_Pk.div_(SMOOTHNESS).exp_()
    place_P = labels_P.where(labels_P >= 0, C)  # ignored pixels get an extra place
    for _ in range(SINKHORN_STEPS):
        sums_Ck = share_Pk.new_zeros(C + 1, k).index_add_(0, place_P, share_Pk)
        share_Pk.div_(sums_Ck[place_P])
        share_Pk.div_(share_Pk.sum(1, keepdim=True))
    return share_Pk.argmax(1)
