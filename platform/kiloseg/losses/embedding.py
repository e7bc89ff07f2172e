"""Cross-entropy between pixel embeddings and a table of class embeddings, in bands of image rows.

Source: "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU", https://arxiv.org/abs/2012.07489. With unit
vectors o (pixel) and e_c (class), a pixel of class t is charged -log(exp z_t / (exp z_t + sum_{c in N} exp z_c)), where
N are its negatives and z_c = -tau ||o - e_c||, or tau o.e_c.

Shapes: B batch, H W pixels, h w feature cells, P pixels of a band, D embedding, C classes, K negatives, n pixels of a
row that count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kiloseg.config import Logit, Negatives
from kiloseg.losses import cpu_backend, triton_backend
from kiloseg.losses.negatives import Candidates, Table, draw_candidates
from kiloseg.losses.reference import Band, Comparison
from kiloseg.ops import cpu
from kiloseg.ops.tiles import tiles
from kiloseg.ops.upsampling import Bands

BAND_BYTES = 2**20
"""Size aimed at for one P x D matrix of a band on a CPU; about ten of them live at once. On a GPU triton_backend.BAND_BYTES."""


@dataclass(frozen=True, kw_only=True)
class _Setting:
    negatives: Negatives
    temperature: float
    logit: Logit
    ignore_index: int
    sample_every: int
    tile_bytes: int | None
    on_chip: bool
    fused: bool


# torch.compile would unroll the loops over bands and tiles into a graph of its own for every size; it leaves this out of
# its graph instead, and says so where fullgraph=True forbids that.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def embedding_cross_entropy(
    pixels_BDhw: Tensor,
    table_CD: Tensor,
    labels_BHW: Tensor,
    *,
    negatives: Negatives,
    temperature: Tensor | float = 20.0,
    logit: Logit = "cosine",
    ignore_index: int = -1,
    sample_every: int = 1,
    tile_bytes: int | None = None,
) -> Tensor:
    """Mean cross-entropy over labelled pixels of embeddings against their own class and chosen negatives.

    The embeddings are upsampled bilinearly (align_corners=False) to the size of the labels and normalised after that; the
    table's rows are normalised. kind "all" is the exact softmax over C classes; "nearest" takes the K classes closest to
    a pixel other than its own; "random" takes K classes that all pixels of the batch share, those that occur in it first,
    the others drawn (from torch's CPU generator), its own left out; "mixed" takes K - K // 2 nearest and K // 2 of such
    shared ones that are not among those.

    Memory: B*D*h*w + C*D for the gradients, h*W*D, a few matrices of `tile_bytes` and about ten of BAND_BYTES while it
    runs, whatever C, K and H*W (16 pixels' C scores, or one row's W*D values, at the least). Gradients are computed in the
    forward pass, in float32 (float64 if the pixels are) also under autocast, and only once: a double backward raises
    RuntimeError, and torch.compile leaves the loss out of its graph. On a CPU a compiled kernel does all of it in float32
    (`kiloseg.losses.cpu_backend`, which needs less memory still); on a GPU with Triton the scores of most kinds stay on chip
    (`kiloseg.losses.triton_backend`). What is done here and in `kiloseg.losses.reference` is the reference of both.

    Args:
        pixels_BDhw: output of the embedding head, floating point.
        table_CD: the class table.
        labels_BHW: int64, 0 to C - 1, or `ignore_index`.
        negatives: kind and number of the classes to compare with.
        temperature: tau, above 0. A scalar tensor is read back from its device, and with cosine logits has a gradient: with
            z = tau o.e and unit vectors, tau dL/dtau is the sum of e . dL/de over classes.
        logit: "cosine" for tau o.e, "distance" for -tau ||o - e||.
        ignore_index: label of pixels that count for nothing.
        sample_every: of so many pixels side by side in a row one counts, drawn at random; 1 for all pixels.
        tile_bytes: size aimed at for one matrix of scores, None for kiloseg.ops.tiles.TILE_BYTES; changes the result by
            rounding only.

    Returns:
        A scalar. 0, with zero gradients, where no pixel is labelled.

    Raises:
        ValueError: shapes that do not belong together, labels that are not int64 or not classes, more negatives than
            other classes, `sample_every` below 1, a temperature to be learned with distance logits.
    """
    device = pixels_BDhw.device
    # Kernels read float32, and nothing of the fake tensors that memory is planned on.
    readable = pixels_BDhw.dtype != torch.float64 and cpu.holds_data(pixels_BDhw) is True
    takes_on_chip = readable and triton_backend.covers(negatives) and triton_backend.available(device)
    setting = _Setting(
        negatives=negatives,
        temperature=_value(temperature),
        logit=logit,
        ignore_index=ignore_index,
        sample_every=sample_every,
        tile_bytes=tile_bytes,
        on_chip=takes_on_chip,
        fused=not takes_on_chip and cpu_backend.takes(pixels_BDhw, negatives),
    )
    _check(pixels_BDhw, table_CD, labels_BHW, setting)
    learned = temperature if isinstance(temperature, Tensor) and temperature.requires_grad else None
    if learned is not None and logit != "cosine":
        raise ValueError(f"a temperature to be learned with logit = {logit!r}: expected 'cosine', or a number")
    with torch.autocast(device.type, enabled=False):
        wide = torch.float64 if pixels_BDhw.dtype == torch.float64 else torch.float32
        rows_CD = F.normalize(table_CD.to(wide), dim=1)
        loss: Tensor = _EmbeddingCrossEntropy.apply(pixels_BDhw.to(wide), rows_CD, labels_BHW, learned, setting)
    return loss


def _value(temperature: Tensor | float) -> float:
    if not isinstance(temperature, Tensor):
        return temperature
    # A fake tensor, on which memory is planned, has no value; any will do, for none changes a shape.
    return 1.0 if cpu.holds_data(temperature) is False else float(temperature.detach())


def _check(pixels_BDhw: Tensor, table_CD: Tensor, labels_BHW: Tensor, setting: _Setting) -> None:
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
    if setting.sample_every < 1:
        raise ValueError(f"sample_every = {setting.sample_every}: expected at least 1, which is every pixel")
    setting.negatives.check_classes(table_CD.shape[0])
    # Reading values back would stall a GPU and cannot be done on fake tensors; batches are checked where they are made.
    if labels_BHW.device.type == "cpu" and type(labels_BHW) is Tensor:
        check_labels(labels_BHW, table_CD.shape[0], setting.ignore_index)


def check_labels(labels_BHW: Tensor, num_classes: int, ignore_index: int = -1) -> None:
    """Raises ValueError where a label is neither a class nor `ignore_index`."""
    wrong = (labels_BHW != ignore_index) & ((labels_BHW < 0) | (labels_BHW >= num_classes))
    if wrong.any():
        raise ValueError(
            f"labels hold class id {int(labels_BHW[wrong][0])}: expected 0 to {num_classes - 1}, or {ignore_index} for ignore"
        )


class _EmbeddingCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pixels_BDhw: Tensor, rows_CD: Tensor, labels_BHW: Tensor, learned: Tensor | None, setting: _Setting
    ) -> Tensor:
        wants_grad = any(ctx.needs_input_grad)
        ctx.temperature = setting.temperature
        kept = () if learned is None else (rows_CD,)
        if setting.fused:
            loss, *gradients = cpu_backend.embedding_loss(
                pixels_BDhw,
                rows_CD,
                labels_BHW,
                _sample_columns(labels_BHW, setting.sample_every),
                negatives=setting.negatives,
                temperature=setting.temperature,
                cosine=setting.logit == "cosine",
                ignore_index=setting.ignore_index,
                tile_bytes=setting.tile_bytes,
                wants_grad=wants_grad,
            )
            if wants_grad:
                ctx.save_for_backward(*gradients, *kept)
            return loss
        B, D, h, w = pixels_BDhw.shape
        _, H, W = labels_BHW.shape
        bands = Bands((h, w), (H, W), pixels_BDhw)
        columns_BHn = _sample_columns(labels_BHW, setting.sample_every)
        labels_BHn = labels_BHW if columns_BHn is None else labels_BHW.gather(2, columns_BHn)
        # The mean over labelled pixels as a weight of each, which needs no value read back from the device.
        counts_BHn = labels_BHn != setting.ignore_index
        weight = 1 / counts_BHn.sum().clamp(min=1).to(pixels_BDhw.dtype)
        table = Table(rows_CD, wants_grad=wants_grad, on_chip=setting.on_chip)
        comparison = _compare_with(table, labels_BHn.where(counts_BHn, -1), setting)
        loss = pixels_BDhw.new_zeros(())
        grad_pixels = torch.empty_like(pixels_BDhw) if wants_grad else None
        band_bytes = BAND_BYTES if pixels_BDhw.is_cpu and not setting.on_chip else triton_backend.BAND_BYTES
        max_rows = max(band_bytes // (pixels_BDhw.element_size() * D * W), 1)
        for one in tiles(B, 1):
            image = one.start
            widened_hWD = bands.widen(pixels_BDhw[image])
            grad_hWD = torch.zeros_like(widened_hWD) if wants_grad else None
            for rows, cells in bands.spans(max_rows):
                pixels_PD = bands.take(widened_hWD, rows, cells)
                if columns_BHn is not None:
                    columns_RnD = columns_BHn[image, rows, :, None].expand(-1, -1, D)
                    pixels_PD = pixels_PD.view(-1, W, D).gather(1, columns_RnD).view(-1, D)
                counts_P = counts_BHn[image, rows].reshape(-1)
                target_P = labels_BHn[image, rows].reshape(-1).where(counts_P, 0)
                band = Band(pixels_PD, table, target_P, weight * counts_P, comparison)
                loss += band.loss
                if grad_hWD is None:
                    continue
                grad_PD = band.grad_raw()
                if columns_BHn is not None:
                    spread_RWD = grad_PD.new_zeros((len(columns_RnD), W, D))
                    grad_PD = spread_RWD.scatter_(1, columns_RnD, grad_PD.view(columns_RnD.shape)).view(-1, D)
                bands.give(grad_hWD, grad_PD, rows, cells)
            if grad_pixels is not None and grad_hWD is not None:
                grad_pixels[image] = bands.narrow(grad_hWD)
        if wants_grad:
            ctx.save_for_backward(grad_pixels, table.grad(), *kept)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_pixels, grad_rows, *rows = ctx.saved_tensors
        grad_temperature = (rows[0] * grad_rows).sum() / ctx.temperature * grad_loss if rows else None
        return grad_pixels * grad_loss, grad_rows * grad_loss, None, grad_temperature, None


def _sample_columns(labels_BHW: Tensor, every: int) -> Tensor | None:
    """Columns of the pixels that count, one at random of every `every` side by side: (B, H, n); None for all."""
    if every == 1:
        return None
    B, H, W = labels_BHW.shape
    first_n = torch.arange(0, W, every)
    step_BHn = (torch.rand(B, H, len(first_n)) * every).long()  # on the host: the same on every device
    return (first_n + step_BHn).clamp_(max=W - 1).to(labels_BHW.device)


def _compare_with(table: Table, known_BHn: Tensor, setting: _Setting) -> Comparison:
    """The negatives of a batch whose labels are `known_BHn`, -1 for ignore."""
    negatives, K = setting.negatives, setting.negatives.count
    candidates = None
    if negatives.kind != "nearest":
        drawn_S = factor_S = None
        if negatives.kind != "all":
            drawn_S, factor_S = draw_candidates(negatives, known_BHn, len(table.rows_CD))
        candidates = Candidates(table, drawn_S, factor_S, temperature=setting.temperature, logit=setting.logit)
    return Comparison(
        temperature=setting.temperature,
        logit=setting.logit,
        candidates=candidates,
        num_nearest={"all": 0, "random": 0, "nearest": K, "mixed": K - K // 2}[negatives.kind],
        num_drawn=K // 2,
        tile_bytes=setting.tile_bytes,
        on_chip=setting.on_chip,
    )
