"""Cross-entropy between pixel embeddings and a table of class embeddings, in bands of image rows.

Source: "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU", https://arxiv.org/abs/2012.07489. With unit
vectors o (pixel) and e_c (class), a pixel of class t is charged -log(exp z_t / (exp z_t + sum_{c in N} exp z_c)), where
N are its negatives and z_c = -tau ||o - e_c||, or tau o.e_c.

Shapes: B batch, H W pixels, h w feature cells, P pixels of a band, D embedding, C classes, K negatives, S candidate
classes of a band (all C, or the drawn ones).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kiloseg.config import Logit, Negatives
from kiloseg.losses import on_chip
from kiloseg.upsample import Bands

TILE_BYTES = 2 * 2**20
"""Size aimed at for one matrix of scores. On two CPU cores and 1,000 classes 2 MiB was the fastest: smaller ones pay for
calls, larger ones leave the cache (0.43 s at 0.25 MiB, 0.24 s at 2 MiB, 0.39 s at 8 MiB for 147,456 pixels)."""

BAND_BYTES = 2**20
"""Size aimed at for one P x D matrix of a band; about ten of them live at once."""

_MIN_SQUARED_DISTANCE = 1e-7
"""2 - 2 o.e of unit vectors is no more exact than this in float32; below it a distance has no slope."""

_NORM_EPS = 1e-12

_SAFE_EXPONENT = 80.0
"""exp(-80) is far from underflow in float32. Logits of unit vectors span at most 2 tau, so up to tau = 40 a softmax needs
no maximum of its own."""

_LOG2E = math.log2(math.e)
"""Exponentials are taken to base 2, which torch computes in half the time on a CPU with AVX2."""


@dataclass(frozen=True)
class _Setting:
    negatives: Negatives
    temperature: float
    logit: Logit
    ignore_index: int
    tile_bytes: int


def embedding_cross_entropy(
    pixels_BDhw: Tensor,
    table_CD: Tensor,
    labels_BHW: Tensor,
    *,
    negatives: Negatives,
    temperature: float = 20.0,
    logit: Logit = "distance",
    ignore_index: int = -1,
    tile_bytes: int = TILE_BYTES,
) -> Tensor:
    """Mean cross-entropy over labelled pixels of embeddings against their own class and chosen negatives.

    The embeddings are upsampled bilinearly (align_corners=False) to the size of the labels and normalised after that; the
    table's rows are normalised. kind "all" is the exact softmax over C classes; "nearest" takes the K classes closest to
    a pixel other than its own; "random" draws K classes anew for every image (from torch's CPU generator), its own left
    out; "mixed" takes K - K // 2 nearest and K // 2 drawn that are not among those.

    Memory: B*D*h*w + C*D for the gradients, h*W*D, a few matrices of `tile_bytes` and about ten of BAND_BYTES while it
    runs, whatever C, K and H*W (one pixel's C scores, or one row's W*D values, at the least). Gradients are computed in the
    forward pass, in float32 (float64 if the pixels are) also under autocast, and only once: there is no double backward.
    On a GPU the ten are of `kiloseg.losses.on_chip.BAND_BYTES`, and with Triton scores stay on chip, but for "mixed" and
    more than 64 nearest.

    Args:
        pixels_BDhw: output of the embedding head, floating point.
        table_CD: the class table.
        labels_BHW: int64, 0 to C - 1, or `ignore_index`.
        negatives: kind and number of the classes to compare with.
        temperature: tau, above 0.
        logit: "distance" for -tau ||o - e||, "cosine" for tau o.e.
        ignore_index: label of pixels that count for nothing.
        tile_bytes: see TILE_BYTES; changes the result by rounding only.

    Returns:
        A scalar. 0, with zero gradients, where no pixel is labelled.

    Raises:
        ValueError: shapes that do not belong together, labels that are not int64 or not classes, more negatives than
            other classes.
    """
    setting = _Setting(negatives, temperature, logit, ignore_index, tile_bytes)
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
        B, D, h, w = pixels_BDhw.shape
        _, H, W = labels_BHW.shape
        C = rows_CD.shape[0]
        negatives = setting.negatives
        bands = Bands((h, w), (H, W), pixels_BDhw)
        # The mean over labelled pixels as a weight of each, which needs no value read back from the device.
        weight = 1 / (labels_BHW != setting.ignore_index).sum().clamp(min=1).to(pixels_BDhw.dtype)
        loss = pixels_BDhw.new_zeros(())
        grad_pixels = torch.empty_like(pixels_BDhw) if wants_grad else None
        table = _Table(rows_CD, setting, wants_grad)
        # Kernels read float32, and nothing of the fake tensors that memory is planned on.
        readable = pixels_BDhw.dtype == torch.float32 and type(pixels_BDhw) is Tensor
        kernels = readable and on_chip.covers(negatives) and on_chip.available(rows_CD.device)
        band_bytes = on_chip.BAND_BYTES if kernels or rows_CD.is_cuda else BAND_BYTES
        max_rows = max(band_bytes // (pixels_BDhw.element_size() * D * W), 1)
        for image in range(B):
            drawn = _draw(negatives, C, rows_CD.device)
            candidates = _Candidates(rows_CD, drawn if negatives.kind == "random" else None, setting)
            widened_hWD = bands.widen(pixels_BDhw[image])
            grad_hWD = torch.zeros_like(widened_hWD) if wants_grad else None
            for rows, cells in bands.spans(max_rows):
                labels_P = labels_BHW[image, rows].reshape(-1)
                band = _Band(bands.take(widened_hWD, rows, cells), table, labels_P, weight, setting)
                if kernels:
                    on_chip.compare(band, candidates)
                elif negatives.kind in ("all", "random"):
                    band.compare_with_all(candidates)
                else:
                    band.compare_with_nearest(candidates, drawn)
                loss += band.loss
                if grad_hWD is not None:
                    bands.give(grad_hWD, band.grad_raw(), rows, cells)
            if grad_pixels is not None and grad_hWD is not None:
                grad_pixels[image] = bands.narrow(grad_hWD)
        if wants_grad:
            ctx.save_for_backward(grad_pixels, table.grad())
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


class _Table:
    """The normalised rows and their gradient, which is gathered in two parts: by rows, and transposed for products."""

    def __init__(self, rows_CD: Tensor, setting: _Setting, wants_grad: bool) -> None:
        self.rows_CD = rows_CD
        self.wants_grad = wants_grad
        if wants_grad:
            self.grad_CD = torch.zeros_like(rows_CD)
            self.grad_DC = rows_CD.new_zeros(rows_CD.shape[::-1]) if setting.negatives.kind == "all" else None

    def grad(self) -> Tensor:
        """The whole gradient, (C, D)."""
        return self.grad_CD if self.grad_DC is None else self.grad_CD.add_(self.grad_DC.T)


class _Candidates:
    """The classes that scores are computed for, S of them, in the layouts that make products fast.

    With D of 10 to 60, P x S scores are bound by memory: (D, S) @ (S, P) ran at 1.5 x the speed of (P, S) @ (S, D) on a CPU.
    """

    def __init__(self, rows_CD: Tensor, drawn: Tensor | None, setting: _Setting) -> None:
        self.drawn = drawn
        self.rows_SD = rows_SD = rows_CD if drawn is None else rows_CD[drawn]
        self.transposed_DS = rows_SD.T.contiguous()
        if setting.logit == "cosine":
            self.scale, self.shift = setting.temperature * _LOG2E, -setting.temperature * _LOG2E
        else:
            self.scale, self.shift = (
                -2.0 * (setting.temperature * _LOG2E) ** 2,
                2.0 * (setting.temperature * _LOG2E) ** 2,
            )
        # The constant rides along as a further dimension, which spares a pass over the scores.
        self.with_ones_ES = torch.cat([self.transposed_DS, rows_CD.new_ones((1, len(rows_SD)))])
        # Reused by all bands: fresh memory of this size costs more in page faults than the product itself.
        self._scores = self._logits = rows_CD.new_empty(0)

    def shifted(self, o_PD: Tensor) -> Tensor:
        """Pixels as `products` takes them, (P, D + 1)."""
        return torch.cat([o_PD * self.scale, o_PD.new_full((len(o_PD), 1), self.shift)], 1)

    def products(self, shifted_PE: Tensor) -> Tensor:
        """tau log2(e) (o.e - 1) for cosine logits, (tau log2(e))^2 ||o - e||^2 for distances: (P, S).

        The result lies in a buffer that the next call overwrites.
        """
        size = len(shifted_PE) * self.with_ones_ES.shape[1]
        if self._scores.numel() < size:
            self._scores = self._scores.new_empty(size)
        return torch.mm(shifted_PE, self.with_ones_ES, out=self._scores[:size].view(len(shifted_PE), -1))

    def negated(self, distance: Tensor) -> Tensor:
        """-distance, in a buffer of its own."""
        if self._logits.numel() < distance.numel():
            self._logits = torch.empty_like(distance).view(-1)
        return torch.neg(distance, out=self._logits[: distance.numel()].view_as(distance))


class _Band:
    """Loss and gradients of the P pixels of one band of rows.

    The target is computed by itself, from the difference of the vectors: it is the one class whose distance goes to 0,
    where 2 - 2 o.e has no digits left. Logits are kept as (z - z_max) log2(e), with z_max = tau for cosines and 0 for
    distances, the highest that unit vectors allow.
    """

    def __init__(self, raw_PD: Tensor, table: _Table, labels_P: Tensor, weight: Tensor, setting: _Setting) -> None:
        self.table = table
        self.tau = setting.temperature
        self.cosine = setting.logit == "cosine"
        self.negatives = setting.negatives
        valid_P = labels_P != setting.ignore_index
        self.weight_P = weight * valid_P
        self.target_P = labels_P.where(valid_P, 0)
        self.norm_P1 = torch.linalg.vector_norm(raw_PD, dim=1, keepdim=True).clamp_(min=_NORM_EPS)
        self.o_PD = raw_PD / self.norm_P1
        target_PD = table.rows_CD[self.target_P]
        # Gradients of the target's logit along o and along e.
        if self.cosine:
            self.z_target_P = ((self.o_PD * target_PD).sum(1) - 1).mul_(self.tau * _LOG2E)
            self.slope_o_PD, self.slope_e_PD = target_PD.mul_(self.tau), self.o_PD * self.tau
        else:
            away_PD = self.o_PD - target_PD
            distance_P1 = torch.linalg.vector_norm(away_PD, dim=1, keepdim=True)
            self.z_target_P = distance_P1[:, 0] * (-self.tau * _LOG2E)
            self.slope_e_PD = away_PD.mul_(self.tau / distance_P1.clamp(min=_MIN_SQUARED_DISTANCE**0.5))
            self.slope_o_PD = -self.slope_e_PD
        self.loss = raw_PD.new_zeros(())
        self.grad_o_PD = torch.empty_like(raw_PD)
        self.tile_bytes = setting.tile_bytes

    def compare_with_all(self, candidates: _Candidates) -> None:
        """Softmax over every class, or over the drawn ones, in tiles of pixels; at most two matrices of scores live at once."""
        shifted_PE = candidates.shifted(self.o_PD)
        o_DP = self.o_PD.T.contiguous()
        grad_o_DP = torch.empty_like(o_DP)
        sums_P = torch.empty_like(self.weight_P)
        for tile in self._tiles(candidates.transposed_DS.shape[1]):
            z_PS, distance_PS = self._logits(candidates.products(shifted_PE[tile]), candidates)
            if 2 * self.tau > _SAFE_EXPONENT:
                top_P1 = torch.maximum(z_PS.amax(1, keepdim=True), self.z_target_P[tile, None])
                z_PS.sub_(top_P1)
                self.z_target_P[tile] -= top_P1[:, 0]
            weight_PS = z_PS.exp2_()
            if candidates.drawn is None:
                weight_PS.scatter_(1, self.target_P[tile, None], 0)
            else:
                allowed_PS = candidates.drawn[None, :] != self.target_P[tile, None]
                weight_PS.mul_(allowed_PS & (allowed_PS.cumsum(1) <= self.negatives.count))
            torch.sum(weight_PS, 1, out=sums_P[tile])
            if not self.table.wants_grad:
                continue
            if distance_PS is not None:
                weight_PS.div_(distance_PS)
            # Factors of a pixel are applied to P x D matrices, not to the P x S one.
            grad_o_DP[:, tile] = candidates.transposed_DS @ weight_PS.T
            pushed_DP = o_DP[:, tile] * self._push(sums_P[tile], tile)
            if candidates.drawn is None:
                assert self.table.grad_DC is not None
                self.table.grad_DC.addmm_(pushed_DP, weight_PS)
            else:
                self.table.grad_CD.index_add_(0, candidates.drawn, (pushed_DP @ weight_PS).T)
        pull_P1 = self._settle(sums_P)
        if self.table.wants_grad:
            torch.mul(grad_o_DP.T, self._push(sums_P, slice(None))[:, None], out=self.grad_o_PD)
            self.grad_o_PD.addcmul_(pull_P1, self.slope_o_PD)
            self.table.grad_CD.index_add_(0, self.target_P, pull_P1 * self.slope_e_PD)

    def compare_with_nearest(self, candidates: _Candidates, drawn: Tensor | None) -> None:
        """Softmax over each pixel's own K classes: a matrix of scores for the search, then P x K x D, in tiles of pixels."""
        shifted_PE = candidates.shifted(self.o_PD)
        sums_P = torch.empty_like(self.weight_P)
        C, D = self.table.rows_CD.shape
        for tile in self._tiles(max(C, self.negatives.count * D)):
            rank_PK, chosen_PK = self._choose(candidates.products(shifted_PE[tile]), self.target_P[tile], drawn)
            z_PK, distance_PK = self._logits(rank_PK, candidates)
            top_P1 = torch.maximum(z_PK.amax(1, keepdim=True), self.z_target_P[tile, None])
            self.z_target_P[tile] -= top_P1[:, 0]
            weight_PK = z_PK.sub_(top_P1).exp2_()
            torch.sum(weight_PK, 1, out=sums_P[tile])
            if not self.table.wants_grad:
                continue
            if distance_PK is not None:
                weight_PK.div_(distance_PK)
            weight_PK.mul_(self._push(sums_P[tile], tile)[:, None])
            self.grad_o_PD[tile] = torch.bmm(weight_PK[:, None], self.table.rows_CD[chosen_PK])[:, 0]
            pushed_PKD = weight_PK[:, :, None] * self.o_PD[tile, None]
            self.table.grad_CD.index_add_(0, chosen_PK.view(-1), pushed_PKD.flatten(0, 1))
        pull_P1 = self._settle(sums_P)
        if self.table.wants_grad:
            self.grad_o_PD.addcmul_(pull_P1, self.slope_o_PD)
            self.table.grad_CD.index_add_(0, self.target_P, pull_P1 * self.slope_e_PD)

    def _choose(self, rank_PC: Tensor, target_P: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores and ids of each pixel's K negatives: the nearest, and for kind "mixed" some of the drawn ones."""
        K = self.negatives.count
        # Nearest is highest among cosines and lowest among distances.
        rank_PC.scatter_(1, target_P[:, None], -torch.inf if self.cosine else torch.inf)
        num_nearest = K if drawn is None else K - K // 2
        rank_PK, chosen_PK = rank_PC.topk(num_nearest, dim=1, largest=self.cosine, sorted=False)
        if drawn is None:
            return rank_PK, chosen_PK
        free_PC = torch.ones_like(rank_PC, dtype=torch.bool)
        free_PC.scatter_(1, chosen_PK, False).scatter_(1, target_P[:, None], False)
        # Earlier draws first: the highest of K + 1, K, ..., 1 among the free ones.
        order = torch.arange(len(drawn), 0, -1, device=drawn.device)
        also_PK = drawn[(free_PC[:, drawn] * order).topk(K // 2, dim=1, sorted=False).indices]
        return torch.cat([rank_PK, rank_PC.gather(1, also_PK)], 1), torch.cat([chosen_PK, also_PK], 1)

    def _tiles(self, width: int) -> Iterator[slice]:
        size = max(self.tile_bytes // (self.o_PD.element_size() * width), 1)
        return (slice(start, start + size) for start in range(0, len(self.o_PD), size))

    def grad_raw(self) -> Tensor:
        """Gradient to the embeddings before their normalisation, through which the part along o vanishes: (P, D)."""
        radial_P1 = (self.grad_o_PD * self.o_PD).sum(1, keepdim=True)
        return torch.addcmul(self.grad_o_PD, self.o_PD, radial_P1, value=-1).div_(self.norm_P1)

    def _logits(self, products: Tensor, candidates: _Candidates) -> tuple[Tensor, Tensor | None]:
        """Logits of `_Candidates.products`, and for distance logits tau log2(e) times the distances."""
        if self.cosine:
            return products, None
        distance = products.clamp_(min=_MIN_SQUARED_DISTANCE * (self.tau * _LOG2E) ** 2).sqrt_()
        return candidates.negated(distance), distance

    def _push(self, negatives_P: Tensor, tile: slice) -> Tensor:
        """Factor of the negatives' gradients, from their sums of exponentials."""
        # d z / d cosine is tau for cosines and tau / distance for distances, which come times tau log2(e).
        slope = self.tau if self.cosine else self.tau * self.tau * _LOG2E
        return slope * self.weight_P[tile] / (negatives_P + self.z_target_P[tile].exp2())

    def _settle(self, negatives_P: Tensor) -> Tensor:
        """Sets the loss from the sums of exponentials over negatives; returns the factor of the target's gradient, (P, 1)."""
        total_P = negatives_P + self.z_target_P.exp2()
        self.loss = torch.dot(total_P.log2() - self.z_target_P, self.weight_P) / _LOG2E
        return (-negatives_P / total_P * self.weight_P)[:, None]
