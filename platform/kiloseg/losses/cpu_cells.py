"""Computes the embedding loss over shared candidates on a CPU, with a compiled kernel that takes scores before upsampling.

The products of embeddings and table are taken at feature cells, of which there are a sixteenth as many as pixels at stride 4. The
scores are then upsampled inside a tile. `kiloseg.losses.cpu_backend` chooses between this and products at every pixel.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, S candidates shared by all pixels, T classes of a panel.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from kiloseg.losses.cpu_batch import CpuBatch, pointers
from kiloseg.losses.negatives import ResolvedNegatives, candidate_columns
from kiloseg.ops import cpu

BLOCK_CELLS = 768
"""The target number of cells in a block. More cells cost memory; with fewer, more cells at block borders are computed twice."""


def pays(pixels_BDhw: Tensor, labels_BHW: Tensor, negatives: ResolvedNegatives, *, cosine: bool) -> bool:
    """Whether scores at cells cost less than scores at pixels: for shared candidates, if upsampling gives at least 4 x the pixels.

    For distances, whose targets are computed pixel by pixel, it takes at least 32 dimensions: at 12 they took 0.9 to 1.2 x the
    time.
    """
    _, D, h, w = pixels_BDhw.shape
    _, H, W = labels_BHW.shape
    return negatives.shares and 4 * h * w <= H * W and (cosine or D >= 32)


class _Targets(NamedTuple):
    """Says where the logits of the pixels' own classes come from."""

    rows: Tensor | None
    """The table, padded to whole vectors; None if every target's score is that of a candidate."""
    target_C: Tensor | None
    """The candidate that a class is, or -1 - its id if it is none, int64; None if all classes are candidates."""
    left_out_C: Tensor | None
    """The candidate that pixels of a class leave out, int64; None for their own class."""
    are_read: bool
    """Whether `rows` are read; if not, they only set the size of the gradient."""


def _targets(batch: CpuBatch) -> _Targets:
    C, drawn_S = len(batch.rows_CD), batch.drawn_S
    if drawn_S is None and batch.cosine:
        return _Targets(None, None, None, False)
    rows = cpu.whole_rows(batch.rows_CD, tiles=False)
    target_C = -1 - torch.arange(C, device=batch.rows_CD.device)
    left_out_C = None if drawn_S is None else candidate_columns(drawn_S, C)
    if drawn_S is None or not batch.cosine:
        # A target's distance is computed from the difference of the vectors, not from a score.
        return _Targets(rows, target_C, left_out_C, True)
    target_C[drawn_S] = torch.arange(len(drawn_S), device=drawn_S.device)
    outside_BHW = (target_C[batch.labels_BHW.where(batch.counts_BHW, -1)] < 0).logical_and_(batch.counts_BHW)
    are_read = bool(cpu.holds_data(rows)) and bool(outside_BHW.any())
    return _Targets(rows, target_C, left_out_C, are_read)


def embedding_loss(batch: CpuBatch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Computes the mean loss of the pixels that count, and the gradients of embeddings and table (None if not wanted).

    Besides the gradients, memory holds the map and its gradient, two matrices of about `tile_bytes` (the scores of a block of
    cells with a chunk of the classes, and their gradients), the table in panels, and about 15 numbers for each pixel of a block.
    The negatives must share candidates.
    """
    _, D, h, w = batch.pixels_BDhw.shape
    _, H, W = batch.labels_BHW.shape
    targets = _targets(batch)
    grad_rows = torch.zeros_like(targets.rows) if targets.rows is not None and batch.wants_grad else None
    candidates = batch.rows_CD if batch.drawn_S is None else batch.rows_CD[batch.drawn_S]
    S = len(candidates)
    panels = cpu.panels(candidates)
    candidates = cpu.whole_rows(candidates, tiles=False)
    width, tile = candidates.shape[1], panels.shape[2]
    grad_candidates = candidates.new_zeros(len(panels) * tile, width) if batch.wants_grad else None
    division = cpu.divide(h, w, len(panels), batch.tile_bytes, BLOCK_CELLS)
    lines, chunk, cells = division.lines(h, H), division.chunk, division.cells
    intervals = max(w - 1, 1)
    sizes = cpu.cells_sizes()
    result, grad_pixels = batch.buffer(), batch.gradient()
    floats: dict[str, Tensor | None] = {
        "candidates": candidates,
        "panels": panels,
        "rows": targets.rows if targets.are_read else None,
        "grad_candidates": grad_candidates,
        "grad_rows": grad_rows,
        "map": batch.buffer(h * w + cpu.PADDING, width).zero_(),
        "grad_map": batch.buffer(h * w + cpu.PADDING, width).zero_() if batch.wants_grad else None,
        "scores": batch.buffer(chunk, cells, tile),
        "grads": batch.buffer(chunk, cells, tile) if batch.wants_grad else None,
        "floats": batch.buffer(sizes.floats, lines * W),
        "losses": batch.buffer(lines * intervals),
        "stencils": batch.buffer(division.block_rows * intervals, 10),
        "y_parts": batch.buffer(H),
        "x_parts": batch.buffer(W),
    }
    integers: dict[str, Tensor | None] = {
        "integers": batch.buffer(sizes.integers, lines * W, dtype=torch.int32),
        "segments": batch.buffer(2 * lines * intervals, dtype=torch.int32),
        "y_starts": batch.buffer(h + 1, dtype=torch.int32),
        "x_starts": batch.buffer(w + 1, dtype=torch.int32),
    }
    if cpu.holds_data(batch.pixels_BDhw):
        call = cpu.Cells(
            S=S,
            block_rows=division.block_rows,
            chunk=chunk,
            capacity=lines * W,
            **pointers({"target": targets.target_C, "left_out": targets.left_out_C}, torch.int64),
            **pointers(floats),
            **pointers(integers, torch.int32),
            **batch.arguments(width, grad_pixels, result),
        )
        kernels = cpu.library()
        assert kernels is not None
        kernels.kiloseg_cells(ctypes.byref(call))
    if grad_candidates is None:
        return result, None, None
    grad_CD = grad_candidates[:S, :D]
    if batch.drawn_S is None:
        grad_CD = grad_CD if grad_rows is None else grad_CD + grad_rows[:, :D]
    else:
        whole_CD = torch.zeros_like(batch.rows_CD) if grad_rows is None else grad_rows[:, :D].contiguous()
        grad_CD = whole_CD.index_add_(0, batch.drawn_S, grad_CD)
    return result, grad_pixels, grad_CD.contiguous()
