"""Computes the cross-entropy between pixel embeddings and a table of class embeddings, in blocks of image rows.

Source: "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU", https://arxiv.org/abs/2012.07489. With unit
vectors o (pixel) and e_c (class), a pixel of class t is charged -log(exp z_t / (exp z_t + sum_{c in N} exp z_c)), where
N are its negatives and z_c = -tau ||o - e_c||, or tau o.e_c.

Shapes: B batch, H W pixels, h w feature cells, P pixels of a block, D embedding, C classes, K negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kiloseg.config import Logit, Negatives
from kiloseg.losses import cpu_backend, reference_cells, triton_backend, triton_cells
from kiloseg.losses.negatives import ResolvedNegatives, draw_candidates, resolve_negatives
from kiloseg.losses.pixel_weights import mean_weights
from kiloseg.losses.reference import BlockLoss, Comparison
from kiloseg.losses.row_blocks import loss_by_rows
from kiloseg.losses.table import Candidates, Table
from kiloseg.ops import cpu
from kiloseg.ops.triton import available as triton_available

BLOCK_BYTES = 2**20
"""The target size of one P x D matrix of a block on a CPU, in bytes; about ten are alive at once. A GPU uses
triton_backend.BLOCK_BYTES."""


@dataclass(frozen=True, kw_only=True)
class _Setting:
    negatives: ResolvedNegatives
    temperature: float
    logit: Logit
    ignore_index: int
    tile_bytes: int | None
    class_weights_C: Tensor | None
    backend: Literal["torch", "cpu kernel", "triton"]


# torch.compile would unroll the loops over bands and tiles into a separate graph for every size. This keeps the loss out of its
# graph instead; with fullgraph=True, which forbids that, torch.compile reports it.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def embedding_cross_entropy(
    pixels_BDhw: Tensor,
    table_CD: Tensor,
    labels_BHW: Tensor,
    *,
    negatives: Negatives,
    temperature: float = 20.0,
    logit: Logit = "cosine",
    ignore_index: int = -1,
    tile_bytes: int | None = None,
    class_weights_C: Tensor | None = None,
) -> Tensor:
    """Computes the mean cross-entropy over labeled pixels of embeddings against their own class and chosen negatives.

    The embeddings are upsampled bilinearly (align_corners=False) to the size of the labels and then normalized; the table's rows
    are normalized too. The kind "all" is the exact softmax over C classes. "nearest" takes the K classes closest to a pixel other
    than its own. "random" takes K classes that all pixels of the batch share: first those that occur in the batch, then classes
    drawn at random (from torch's CPU generator), without the pixel's own class. "mixed" takes K - K // 2 nearest classes and K //
    2 shared ones that are not among them.

    Memory: B*D*h*w + C*D for the gradients, h*W*D, a few matrices of `tile_bytes`, and about ten of BLOCK_BYTES while it runs,
    whatever C, K and H*W are (at least 16 pixels' C scores, or one row's W*D values). Gradients are computed in the forward pass,
    in float32 (float64 if the pixels are) even under autocast, and only once: a double backward raises RuntimeError, and
    torch.compile leaves the loss out of its graph. On a CPU, a compiled kernel computes all of it in float32 with even less memory
    (`kiloseg.losses.cpu_backend`). On a GPU, Triton kernels compute most kinds (`kiloseg.losses.triton_backend` and
    `kiloseg.losses.triton_cells`). The code here and in `kiloseg.losses.reference` is the reference for both.

    Args:
        pixels_BDhw: the output of the embedding head, floating point.
        table_CD: the class table.
        labels_BHW: int64, 0 to C - 1, or `ignore_index`.
        negatives: the kind and number of the classes to compare with.
        temperature: the factor tau, above 0.
        logit: "cosine" for tau o.e, or "distance" for -tau ||o - e||.
        ignore_index: the label of pixels that do not count.
        tile_bytes: the target size of one matrix of scores in bytes; None means kiloseg.ops.tiles.TILE_BYTES. It changes the
            result only by rounding.
        class_weights_C: the weight of every class, 0 or more, in the mean over pixels, as in torch.nn.CrossEntropyLoss; None: 1 for
            all. With weights, a CPU computes the loss without its compiled kernel.

    Returns:
        A scalar. It is 0, with zero gradients, if no pixel is labeled.

    Raises:
        ValueError: Shapes do not match, labels are not int64 or not classes, or there are more negatives than
            other classes.
    """
    check_batch(pixels_BDhw, table_CD, labels_BHW, ignore_index)
    device = pixels_BDhw.device
    resolved = resolve_negatives(negatives, len(table_CD))
    setting = _Setting(
        negatives=resolved,
        temperature=temperature,
        logit=logit,
        ignore_index=ignore_index,
        tile_bytes=tile_bytes,
        class_weights_C=None if class_weights_C is None else class_weights_C.to(device, _wide(pixels_BDhw)),
        backend=_choose_backend(pixels_BDhw, resolved, weighted=class_weights_C is not None),
    )
    with torch.autocast(device.type, enabled=False):
        wide = _wide(pixels_BDhw)
        rows_CD = F.normalize(table_CD.to(wide), dim=1)
        loss: Tensor = _EmbeddingCrossEntropy.apply(pixels_BDhw.to(wide), rows_CD, labels_BHW, setting)
    return loss


def _wide(pixels_BDhw: Tensor) -> torch.dtype:
    """Returns the type that the loss is computed in."""
    return torch.float64 if pixels_BDhw.dtype == torch.float64 else torch.float32


def _choose_backend(
    pixels_BDhw: Tensor, negatives: ResolvedNegatives, *, weighted: bool
) -> Literal["torch", "cpu kernel", "triton"]:
    # Kernels read float32 data. Triton's cannot read the fake tensors that memory is planned on.
    readable = pixels_BDhw.dtype != torch.float64 and cpu.holds_data(pixels_BDhw) is True
    if readable and triton_backend.covers(negatives) and triton_available(pixels_BDhw.device):
        return "triton"
    # The CPU kernel gives all labeled pixels of a batch one weight.
    return "cpu kernel" if not weighted and cpu_backend.supports(pixels_BDhw, negatives) else "torch"


def check_batch(pixels_BDhw: Tensor, table_CD: Tensor, labels_BHW: Tensor, ignore_index: int) -> None:
    """Raises ValueError if shapes do not match, or labels are not int64 or not classes."""
    if pixels_BDhw.dim() != 4 or table_CD.dim() != 2 or pixels_BDhw.shape[1] != table_CD.shape[1]:
        raise ValueError(
            f"pixels of shape {tuple(pixels_BDhw.shape)} with a table of shape {tuple(table_CD.shape)}: "
            "expected (B, D, h, w) and (C, D) with the same D"
        )
    if labels_BHW.dim() != 3 or labels_BHW.shape[0] != pixels_BDhw.shape[0] or labels_BHW.dtype != torch.int64:
        raise ValueError(
            f"labels of shape {tuple(labels_BHW.shape)} and type {labels_BHW.dtype}: "
            f"expected int64 of shape (B, H, W) with B = {pixels_BDhw.shape[0]}"
        )
    # Reading values back would stall a GPU and is impossible on fake tensors. Batches are checked where they are made.
    if labels_BHW.device.type == "cpu" and type(labels_BHW) is Tensor:
        check_labels(labels_BHW, table_CD.shape[0], ignore_index)


def check_labels(labels_BHW: Tensor, num_classes: int, ignore_index: int = -1) -> None:
    """Raises ValueError if a label is neither a class nor `ignore_index`."""
    wrong = (labels_BHW != ignore_index) & ((labels_BHW < 0) | (labels_BHW >= num_classes))
    if wrong.any():
        raise ValueError(
            f"labels hold class id {int(labels_BHW[wrong][0])}: expected 0 to {num_classes - 1}, or {ignore_index} for ignore"
        )


class _EmbeddingCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels_BDhw: Tensor, rows_CD: Tensor, labels_BHW: Tensor, setting: _Setting) -> Tensor:
        wants_grad = any(ctx.needs_input_grad)
        if setting.backend == "cpu kernel":
            loss, *gradients = cpu_backend.embedding_loss(
                pixels_BDhw,
                rows_CD,
                labels_BHW,
                negatives=setting.negatives,
                temperature=setting.temperature,
                cosine=setting.logit == "cosine",
                ignore_index=setting.ignore_index,
                tile_bytes=setting.tile_bytes,
                wants_grad=wants_grad,
            )
        else:
            loss, *gradients = _loss_in_blocks(pixels_BDhw, rows_CD, labels_BHW, setting, wants_grad)
        if wants_grad:
            ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_pixels, grad_rows = ctx.saved_tensors
        # A table of prototypes gets no gradient.
        grad_rows = grad_rows * grad_loss if ctx.needs_input_grad[1] else None
        return grad_pixels * grad_loss, grad_rows, None, None


def _loss_in_blocks(
    pixels_BDhw: Tensor, rows_CD: Tensor, labels_BHW: Tensor, setting: _Setting, wants_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Computes the loss and its gradients with torch's operations or Triton's kernels, one block of rows at a time."""
    _, H, W = labels_BHW.shape
    triton = setting.backend == "triton"
    # Writing the mean over labeled pixels as a weight for each pixel avoids reading a value back from the device.
    counts_BHW = labels_BHW != setting.ignore_index
    weights_BHW, whole = mean_weights(setting.class_weights_C, labels_BHW, counts_BHW)
    weight = 1 / whole.to(pixels_BDhw.dtype)
    table = Table(rows_CD, wants_grad=wants_grad, grad_by_class=triton)
    comparison = _compare_with(table, labels_BHW.where(counts_BHW, -1), setting)
    at_cells = triton_cells if triton else reference_cells
    if at_cells.pays(pixels_BDhw, (H, W), setting.negatives, len(rows_CD)):
        target_BHW = labels_BHW.where(counts_BHW, 0)
        loss, grad_pixels = at_cells.embedding_loss(pixels_BDhw, target_BHW, weight * weights_BHW, table, comparison)
        return loss, grad_pixels, table.grad() if wants_grad else None
    search = triton_cells.nearest_search(pixels_BDhw, rows_CD, (H, W), setting.negatives) if triton else None

    def block_loss(image: int, rows: slice, pixels_PD: Tensor) -> tuple[Tensor, Tensor | None]:
        counts_P = counts_BHW[image, rows].reshape(-1)
        target_P = labels_BHW[image, rows].reshape(-1).where(counts_P, 0)
        pixels = (pixels_PD, table, target_P, weight * weights_BHW[image, rows].reshape(-1), comparison)
        found = None if search is None else search.find(image, rows, target_P)
        block = triton_backend.TritonBlockLoss(*pixels, found=found) if triton else BlockLoss(*pixels)
        return block.loss, block.grad_raw() if wants_grad else None

    block_bytes = BLOCK_BYTES if pixels_BDhw.is_cpu and not triton else triton_backend.BLOCK_BYTES
    loss, grad_pixels = loss_by_rows(pixels_BDhw, (H, W), block_bytes, block_loss, wants_grad=wants_grad)
    return loss, grad_pixels, table.grad() if wants_grad else None


def _compare_with(table: Table, known_BHW: Tensor, setting: _Setting) -> Comparison:
    """Returns the negatives of a batch whose labels are `known_BHW`, with -1 for ignore."""
    negatives, candidates = setting.negatives, None
    drawn_S = draw_candidates(negatives.drawn, known_BHW, len(table.rows_CD)) if negatives.drawn else None
    if negatives.shares or drawn_S is not None:
        candidates = Candidates(table, drawn_S, temperature=setting.temperature, logit=setting.logit)
    return Comparison(
        temperature=setting.temperature,
        logit=setting.logit,
        negatives=negatives,
        candidates=candidates,
        tile_bytes=setting.tile_bytes,
    )
