"""Computes the embedding loss over shared candidates on a CPU, with a compiled kernel that takes scores before upsampling.

The products of embeddings and table are taken at feature cells, of which there are a sixteenth as many as pixels at stride 4. The
scores are then upsampled inside a tile. `kiloseg.losses.cpu_backend` chooses between this and products at every pixel.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, S candidates shared by all pixels, T classes of a panel.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kiloseg.losses.negatives import ResolvedNegatives, candidate_columns, draw_candidates
from kiloseg.ops import cpu
from kiloseg.ops.logits import SAFE_EXPONENT
from kiloseg.ops.tiles import TILE_BYTES

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


def embedding_loss(
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
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Computes the mean loss of the pixels that count, and its gradients.

    Besides the gradients, memory holds the map and its gradient, two matrices of about `tile_bytes` (the scores of a block of
    cells with a chunk of the classes, and their gradients), the table in panels, and about 15 numbers for each pixel of a block.

    Args:
        pixels_BDhw: the pixel embeddings, float32.
        rows_CD: the class table, rows of unit length, float32.
        labels_BHW: int64, classes or `ignore_index`.
        negatives: the classes that pixels are compared with; they must share candidates.
        temperature: the factor tau.
        cosine: whether logits are cosines; otherwise they are distances.
        ignore_index: the label of pixels that do not count.
        tile_bytes: the target size of a matrix of scores in bytes; None means kiloseg.ops.tiles.TILE_BYTES.
        wants_grad: whether to compute gradients; if not, None is returned for them.
    """
    B, D, h, w = pixels_BDhw.shape
    _, H, W = labels_BHW.shape
    C = len(rows_CD)
    if not pixels_BDhw.is_contiguous(memory_format=torch.channels_last):
        pixels_BDhw = pixels_BDhw.contiguous()
    labels_BHW = labels_BHW.contiguous()
    counts_BHW = labels_BHW != ignore_index
    drawn_S = target_C = left_out_C = rows = grad_rows = outside_BHW = None
    if negatives.drawn:
        known_BHW = labels_BHW.where(counts_BHW, -1)
        drawn_S = draw_candidates(negatives.drawn, known_BHW, C)
        left_out_C = candidate_columns(drawn_S, C)
        target_C = -1 - torch.arange(C)
        target_C[drawn_S] = torch.arange(len(drawn_S))
        outside_BHW = (target_C[known_BHW] < 0).logical_and_(counts_BHW)
    if not cosine:  # a target's distance is computed from the difference of the vectors, not from a score
        target_C = -1 - torch.arange(C)
    if drawn_S is not None or not cosine:
        rows = cpu.whole_rows(rows_CD, tiles=False)
        grad_rows = torch.zeros_like(rows) if wants_grad else None
    candidates = rows_CD if drawn_S is None else rows_CD[drawn_S]
    panels = cpu.panels(candidates)
    candidates = cpu.whole_rows(candidates, tiles=False)
    S = C if drawn_S is None else len(drawn_S)
    width, tile = candidates.shape[1], panels.shape[2]
    grad_candidates = candidates.new_zeros(len(panels) * tile, width) if wants_grad else None
    division = cpu.divide(h, w, len(panels), tile_bytes or TILE_BYTES["cpu"], BLOCK_CELLS)
    block_rows, chunk, cells = division
    lines = division.lines(h, H)
    patches = block_rows * max(w - 1, 1)

    def buffer(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=pixels_BDhw.device)

    def integers(*size: int) -> Tensor:
        return buffer(*size, dtype=torch.int32)

    sizes = cpu.cells_sizes()
    result = buffer()
    grad_pixels = torch.empty_like(pixels_BDhw) if wants_grad else None
    memory = {
        "map": torch.zeros((h * w + cpu.PADDING, width), device=pixels_BDhw.device),
        "grad_map": torch.zeros((h * w + cpu.PADDING, width), device=pixels_BDhw.device) if wants_grad else None,
        "scores": buffer(chunk, cells, tile),
        "grads": buffer(chunk, cells, tile) if wants_grad else None,
        "floats": buffer(sizes.floats, lines * W),
        "losses": buffer(lines * max(w - 1, 1)),
        "stencils": buffer(patches, 10),
        "y_parts": buffer(H),
        "x_parts": buffer(W),
    }
    whole = {
        "integers": integers(sizes.integers, lines * W),
        "segments": integers(2 * lines * max(w - 1, 1)),
        "y_starts": integers(h + 1),
        "x_starts": integers(w + 1),
    }
    if cpu.holds_data(pixels_BDhw):
        image_stride, dim_stride, row_stride, column_stride = pixels_BDhw.stride()
        assert grad_pixels is None or grad_pixels.stride() == pixels_BDhw.stride()
        call = cpu.Cells(
            B=B, D=D, h=h, w=w, H=H, W=W, S=S, width=width,
            block_rows=block_rows,
            chunk=chunk,
            capacity=lines * W,
            threads=torch.get_num_threads(),
            ignore=ignore_index,
            wants_grad=wants_grad,
            needs_top=2 * temperature > SAFE_EXPONENT,
            cosine=cosine,
            image_stride=image_stride,
            dim_stride=dim_stride,
            row_stride=row_stride,
            column_stride=column_stride,
            tau=temperature,
            weight=1 / max(int(counts_BHW.sum()), 1),
            pixels=pixels_BDhw.data_ptr(),
            labels=cpu.pointer("labels", labels_BHW, torch.int64),
            candidates=cpu.pointer("candidates", candidates),
            panels=cpu.pointer("panels", panels),
            rows=cpu.pointer("rows", rows) if not cosine or (outside_BHW is not None and outside_BHW.any()) else None,
            target=cpu.pointer("target_C", target_C, torch.int64),
            left_out=cpu.pointer("left_out_C", left_out_C, torch.int64),
            grad_pixels=None if grad_pixels is None else grad_pixels.data_ptr(),
            grad_candidates=cpu.pointer("grad_candidates", grad_candidates),
            grad_rows=cpu.pointer("grad_rows", grad_rows),
            result=cpu.pointer("result", result),
            **{name: cpu.pointer(name, tensor) for name, tensor in memory.items()},
            **{name: cpu.pointer(name, tensor, torch.int32) for name, tensor in whole.items()},
        )  # fmt: skip
        kernels = cpu.library()
        assert kernels is not None
        kernels.kiloseg_cells(ctypes.byref(call))
    if grad_candidates is None:
        return result, None, None
    grad_CD = grad_candidates[:S, :D]
    if drawn_S is None:
        grad_CD = grad_CD if grad_rows is None else grad_CD + grad_rows[:, :D]
    else:
        whole_CD = torch.zeros_like(rows_CD) if grad_rows is None else grad_rows[:, :D].contiguous()
        grad_CD = whole_CD.index_add_(0, drawn_S, grad_CD)
    return result, grad_pixels, grad_CD.contiguous()
