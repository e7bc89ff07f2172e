"""Cross-entropy between pixel embeddings and a table of class embeddings, in bands of image rows.

Source: "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU", https://arxiv.org/abs/2012.07489. With unit
vectors o (pixel) and e_c (class), a pixel of class t is charged -log(exp z_t / (exp z_t + sum_{c in N} exp z_c)), where
N are its negatives and z_c = -tau ||o - e_c||, or tau o.e_c.

Shapes: B batch, H W pixels, h w feature cells, P pixels of a band, D embedding, C classes, K negatives, S candidate
classes of a band (all C, or the drawn ones).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kiloseg.config import Logit, Negatives
from kiloseg.upsample import Bands

BAND_BYTES = 4 * 2**20
"""Size aimed at for one P x S matrix of scores; about two of them live at once."""

_MIN_SQUARED_DISTANCE = 1e-7
"""2 - 2 o.e of unit vectors is no more exact than this in float32; below it a distance has no slope."""

_NORM_EPS = 1e-12


@dataclass(frozen=True)
class _Setting:
    negatives: Negatives
    temperature: float
    logit: Logit
    ignore_index: int
    band_bytes: int


def embedding_cross_entropy(
    pixels_BDhw: Tensor,
    table_CD: Tensor,
    labels_BHW: Tensor,
    *,
    negatives: Negatives,
    temperature: float = 20.0,
    logit: Logit = "distance",
    ignore_index: int = -1,
    band_bytes: int = BAND_BYTES,
) -> Tensor:
    """Mean cross-entropy over labelled pixels of embeddings against their own class and chosen negatives.

    The embeddings are upsampled bilinearly (align_corners=False) to the size of the labels and normalised after that; the
    table's rows are normalised. kind "all" is the exact softmax over C classes; "nearest" takes the K classes closest to
    a pixel other than its own; "random" draws K classes anew for every image (from torch's CPU generator), its own left
    out; "mixed" takes K - K // 2 nearest and K // 2 drawn that are not among those.

    Memory: B*D*h*w + C*D for the gradients, h*W*D and about two matrices of `band_bytes` while it runs, whatever C, K
    and H*W (a band has at least one row: W * C scores at the worst). Gradients are computed in the forward pass, in
    float32 (float64 if the pixels are) also under autocast, and only once: there is no double backward.

    Args:
        pixels_BDhw: output of the embedding head, floating point.
        table_CD: the class table.
        labels_BHW: int64, 0 to C - 1, or `ignore_index`.
        negatives: kind and number of the classes to compare with.
        temperature: tau, above 0.
        logit: "distance" for -tau ||o - e||, "cosine" for tau o.e.
        ignore_index: label of pixels that count for nothing.
        band_bytes: see BAND_BYTES; changes the result by rounding only.

    Returns:
        A scalar. 0, with zero gradients, where no pixel is labelled.

    Raises:
        ValueError: shapes that do not belong together, labels that are not int64 or not classes, more negatives than
            other classes.
    """
    setting = _Setting(negatives, temperature, logit, ignore_index, band_bytes)
    _check(pixels_BDhw, table_CD, labels_BHW, setting)
    with torch.autocast(pixels_BDhw.device.type, enabled=False):
        wide = torch.float64 if pixels_BDhw.dtype == torch.float64 else torch.float32
        rows_CD = F.normalize(table_CD.to(wide), dim=1, eps=_NORM_EPS)
        loss: Tensor = _EmbeddingCrossEntropy.apply(pixels_BDhw.to(wide), rows_CD, labels_BHW, setting)
    return loss


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
    def forward(ctx: Any, pixels_BDhw: Tensor, rows_CD: Tensor, labels_BHW: Tensor, setting: _Setting) -> Tensor:
        wants_grad = any(ctx.needs_input_grad)
        B, _, h, w = pixels_BDhw.shape
        _, H, W = labels_BHW.shape
        C = rows_CD.shape[0]
        bands = Bands((h, w), (H, W), pixels_BDhw)
        # The mean over labelled pixels as a weight of each, which needs no value read back from the device.
        weight = 1 / (labels_BHW != setting.ignore_index).sum().clamp(min=1).to(pixels_BDhw.dtype)
        loss = pixels_BDhw.new_zeros(())
        grad_pixels = torch.empty_like(pixels_BDhw) if wants_grad else None
        grad_rows = torch.zeros_like(rows_CD) if wants_grad else None
        for image in range(B):
            drawn = _draw(setting.negatives, C, rows_CD.device)
            candidates = C if drawn is None or setting.negatives.kind == "mixed" else len(drawn)
            max_rows = max(setting.band_bytes // (pixels_BDhw.element_size() * candidates * W), 1)
            widened_hWD = bands.widen(pixels_BDhw[image])
            grad_hWD = torch.zeros_like(widened_hWD) if wants_grad else None
            for band, cells in bands.spans(max_rows):
                labels_P = labels_BHW[image, band].reshape(-1)
                raw_PD = bands.take(widened_hWD, band, cells)
                band_loss, grad_PD = _band(raw_PD, rows_CD, labels_P, weight, drawn, setting, grad_rows)
                loss += band_loss
                if grad_hWD is not None and grad_PD is not None:
                    bands.give(grad_hWD, grad_PD, band, cells)
            if grad_pixels is not None and grad_hWD is not None:
                grad_pixels[image] = bands.narrow(grad_hWD)
        if wants_grad:
            ctx.save_for_backward(grad_pixels, grad_rows)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_pixels, grad_rows = ctx.saved_tensors
        return grad_pixels * grad_loss, grad_rows * grad_loss, None, None


def _draw(negatives: Negatives, C: int, device: torch.device) -> Tensor | None:
    """K + 1 classes in random order: whichever K of them a pixel may not use or need not, K others are left."""
    if negatives.kind not in ("random", "mixed"):
        return None
    return torch.randperm(C)[: negatives.count + 1].to(device)


def _band(
    raw_PD: Tensor,
    rows_CD: Tensor,
    labels_P: Tensor,
    weight: Tensor,
    drawn: Tensor | None,
    setting: _Setting,
    grad_rows: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Loss of a band, and the gradient to its raw embeddings; the table's gradient is added to `grad_rows`."""
    valid_P = labels_P != setting.ignore_index
    weight_P = weight * valid_P
    target_P = labels_P.where(valid_P, 0)
    norm_P1 = torch.linalg.vector_norm(raw_PD, dim=1, keepdim=True).clamp_(min=_NORM_EPS)
    o_PD = raw_PD / norm_P1

    # The target is computed by itself, from differences: it is the one class whose distance goes to 0.
    target_PD = rows_CD[target_P]
    if setting.logit == "distance":
        away_PD = o_PD - target_PD
        distance_P1 = torch.linalg.vector_norm(away_PD, dim=1, keepdim=True)
        z_target_P = distance_P1[:, 0] * -setting.temperature
    else:
        z_target_P = (o_PD * target_PD).sum(1) * setting.temperature

    kind = setting.negatives.kind
    drawn_only = kind == "random"
    candidates_SD = rows_CD[drawn] if drawn_only and drawn is not None else rows_CD
    cosine_PS = o_PD @ candidates_SD.T
    barred_PS = _barred(cosine_PS, target_P, drawn, setting.negatives)
    z_PS, slope_PS = _logits(cosine_PS, setting)
    z_PS.masked_fill_(barred_PS, -torch.inf) if barred_PS is not None else z_PS.scatter_(
        1, target_P[:, None], -torch.inf
    )

    logsumexp_P = torch.logaddexp(torch.logsumexp(z_PS, dim=1), z_target_P)
    loss = torch.dot(logsumexp_P - z_target_P, weight_P)
    if grad_rows is None:
        return loss, None

    # d loss / d z: softmax, minus 1 at the target, times the pixel's weight.
    pull_P1 = ((z_target_P - logsumexp_P).exp_() - 1).mul_(weight_P)[:, None]
    push_PS = z_PS.sub_(logsumexp_P[:, None]).exp_().mul_(weight_P[:, None])
    if slope_PS is None:
        push_PS.mul_(setting.temperature)
        pull_P1 = pull_P1 * setting.temperature
        along_PD = target_PD
        grad_target_PD = pull_P1 * o_PD
    else:
        push_PS.mul_(slope_PS)
        along_PD = away_PD * (-setting.temperature / distance_P1.clamp(min=_MIN_SQUARED_DISTANCE**0.5))
        grad_target_PD = -pull_P1 * along_PD
    grad_o_PD = torch.addmm(pull_P1 * along_PD, push_PS, candidates_SD)
    grad_rows.index_add_(0, target_P, grad_target_PD)
    if drawn_only and drawn is not None:
        grad_rows.index_add_(0, drawn, push_PS.T @ o_PD)
    else:
        grad_rows.addmm_(push_PS.T, o_PD)
    # Through the normalisation: the part along o vanishes.
    radial_P1 = (grad_o_PD * o_PD).sum(1, keepdim=True)
    return loss, torch.addcmul(grad_o_PD, o_PD, radial_P1, value=-1).div_(norm_P1)


def _logits(cosine_PS: Tensor, setting: _Setting) -> tuple[Tensor, Tensor | None]:
    """Logits from cosines, in place, and for distances d z / d cosine."""
    if setting.logit == "cosine":
        return cosine_PS.mul_(setting.temperature), None
    squared_PS = cosine_PS.mul_(-2).add_(2)
    distance_PS = squared_PS.clamp_(min=_MIN_SQUARED_DISTANCE).sqrt_()
    slope_PS = distance_PS.reciprocal().mul_(setting.temperature)
    return distance_PS.mul_(-setting.temperature), slope_PS


def _barred(cosine_PS: Tensor, target_P: Tensor, drawn: Tensor | None, negatives: Negatives) -> Tensor | None:
    """Which candidates are not negatives of a pixel, as a boolean (P, S); None where that is the target alone."""
    K = negatives.count
    if negatives.kind == "all":
        return None
    if negatives.kind == "random":
        assert drawn is not None
        return ~_first_allowed(drawn[None, :] != target_P[:, None], K)
    num_nearest = K if negatives.kind == "nearest" else K - K // 2
    others_PS = cosine_PS.scatter(1, target_P[:, None], -torch.inf)
    nearest_PK = others_PS.topk(num_nearest, dim=1, sorted=False).indices
    barred_PS = torch.ones_like(cosine_PS, dtype=torch.bool).scatter_(1, nearest_PK, False)
    if negatives.kind == "mixed":
        assert drawn is not None
        free_PS = barred_PS.scatter(1, target_P[:, None], False)[:, drawn]
        barred_PS[:, drawn] &= ~_first_allowed(free_PS, K // 2)
    return barred_PS


def _first_allowed(allowed_PS: Tensor, count: int) -> Tensor:
    """The first `count` allowed candidates of each pixel."""
    return allowed_PS & (allowed_PS.cumsum(1) <= count)
