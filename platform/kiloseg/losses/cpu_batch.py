"""Prepares a batch for the CPU kernels of the loss.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, S drawn classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kiloseg.losses.negatives import ResolvedNegatives, draw_candidates
from kiloseg.ops import cpu
from kiloseg.ops.logits import SAFE_EXPONENT
from kiloseg.ops.tiles import TILE_BYTES


@dataclass(frozen=True, kw_only=True)
class CpuBatch:
    """Holds what a kernel computes the loss of; `CpuBatch.of` makes it."""

    pixels_BDhw: Tensor
    """The pixel embeddings, float32, with channels last or contiguous."""
    rows_CD: Tensor
    """The class table, rows of unit length, float32."""
    labels_BHW: Tensor
    """int64, contiguous: classes or `ignore_index`."""
    counts_BHW: Tensor
    """Whether a pixel counts."""
    drawn_S: Tensor | None
    """The ids of the classes that were drawn for the batch, int64; None if there are none."""
    negatives: ResolvedNegatives
    """The classes that pixels are compared with."""
    temperature: float
    """The factor tau."""
    cosine: bool
    """Whether logits are cosines; otherwise they are distances."""
    ignore_index: int
    """The label of pixels that do not count."""
    tile_bytes: int
    """The target size of a matrix of scores in bytes."""
    wants_grad: bool
    """Whether to compute gradients; if not, None is returned for them."""

    @staticmethod
    def of(
        pixels_BDhw: Tensor,
        rows_CD: Tensor,
        labels_BHW: Tensor,
        *,
        negatives: ResolvedNegatives,
        temperature: float,
        cosine: bool,
        ignore_index: int,
        tile_bytes: int | None,
        wants_grad: bool,
    ) -> CpuBatch:
        """Brings tensors into a layout that kernels read, and draws the batch's classes.

        `tile_bytes` may be None, which means kiloseg.ops.tiles.TILE_BYTES; the other arguments are those of the class.
        """
        if not pixels_BDhw.is_contiguous(memory_format=torch.channels_last):
            pixels_BDhw = pixels_BDhw.contiguous()
        labels_BHW = labels_BHW.contiguous()
        counts_BHW = labels_BHW != ignore_index
        drawn_S = None
        if negatives.drawn:
            drawn_S = draw_candidates(negatives.drawn, labels_BHW.where(counts_BHW, -1), len(rows_CD))
        return CpuBatch(
            pixels_BDhw=pixels_BDhw,
            rows_CD=rows_CD,
            labels_BHW=labels_BHW,
            counts_BHW=counts_BHW,
            drawn_S=drawn_S,
            negatives=negatives,
            temperature=temperature,
            cosine=cosine,
            ignore_index=ignore_index,
            tile_bytes=tile_bytes or TILE_BYTES["cpu"],
            wants_grad=wants_grad,
        )

    def buffer(self, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns memory for a kernel, which is not initialized."""
        return torch.empty(size, dtype=dtype, device=self.pixels_BDhw.device)

    def gradient(self) -> Tensor | None:
        """Returns memory for the gradient of the embeddings, or None if it is not wanted."""
        return torch.empty_like(self.pixels_BDhw) if self.wants_grad else None

    def arguments(self, width: int, grad_pixels: Tensor | None, result: Tensor) -> dict[str, int | float | None]:
        """Returns the fields of `cpu.Batch` by name; only for tensors that hold data.

        Args:
            width: D, padded to whole vectors.
            grad_pixels: what `gradient` returned.
            result: a scalar for the loss, float32.
        """
        B, D, h, w = self.pixels_BDhw.shape
        _, H, W = self.labels_BHW.shape
        image_stride, dim_stride, row_stride, column_stride = self.pixels_BDhw.stride()
        assert grad_pixels is None or grad_pixels.stride() == self.pixels_BDhw.stride()
        return {
            "B": B, "D": D, "h": h, "w": w, "H": H, "W": W, "width": width,
            "threads": torch.get_num_threads(),
            "cosine": self.cosine,
            "ignore": self.ignore_index,
            "wants_grad": self.wants_grad,
            "needs_top": 2 * self.temperature > SAFE_EXPONENT,
            "image_stride": image_stride,
            "dim_stride": dim_stride,
            "row_stride": row_stride,
            "column_stride": column_stride,
            "tau": self.temperature,
            "weight": 1 / max(int(self.counts_BHW.sum()), 1),
            "pixels": self.pixels_BDhw.data_ptr(),
            "labels": cpu.pointer("labels", self.labels_BHW, torch.int64),
            "grad_pixels": None if grad_pixels is None else grad_pixels.data_ptr(),
            "result": cpu.pointer("result", result),
        }  # fmt: skip


def pointers(tensors: dict[str, Tensor | None], dtype: torch.dtype = torch.float32) -> dict[str, int | None]:
    """Returns the addresses of a kernel's tensors, all of one type, by name.

    Raises:
        ValueError: A tensor has another type, or is not contiguous.
    """
    return {name: cpu.pointer(name, tensor, dtype) for name, tensor in tensors.items()}
