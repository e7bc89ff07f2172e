"""Computes the embedding loss on a CPU with a compiled kernel, in one pass over the pixels that count.

Elsewhere, and where there is no compiler, `kiloseg.losses.reference` computes the same with torch's operations; it is the
reference.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, S candidates shared by all pixels, K classes of a
pixel's own.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kiloseg.losses import cpu_cells
from kiloseg.losses.negatives import ResolvedNegatives, candidate_columns, draw_candidates
from kiloseg.ops import cpu
from kiloseg.ops.logits import LOG2E, SAFE_EXPONENT
from kiloseg.ops.tiles import TILE_BYTES

BLOCK_BYTES = 2**19
"""The target size of one matrix of a block's pixels, in bytes. About four such matrices are alive at once."""

_MIN_GROUPS = 4
"""The weights of a block to all classes are kept only if there is room for at least this many groups of pixels."""

_SCALARS, _INTEGERS = 4, 3  # values per pixel; see ops/cpu/loss.h


class _Loss(ctypes.Structure):
    """Mirrors `struct loss` of ops/cpu/loss.h."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                "B", "D", "h", "w", "H", "W", "C", "S", "K", "searched", "width", "capacity", "keeps_weights",
                "threads", "cosine", "ignore", "wants_grad", "needs_top",
                "image_stride", "dim_stride", "row_stride", "column_stride",
            )
        ),
        *((name, ctypes.c_float) for name in ("tau", "weight")),
        *((name, ctypes.c_void_p) for name in ("pixels", "labels", "rows", "candidates", "left_out", "drawn")),
        ("num_drawn", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "grad_pixels", "grad_rows", "grad_candidates", "result",
                "map", "grad_map", "o", "grad", "unit", "kept", "scalars", "integers", "own_weights", "own_ids",
            )
        ),
    )  # fmt: skip


def supports(pixels_BDhw: Tensor, negatives: ResolvedNegatives) -> bool:
    """Whether the kernel can compute this loss: on a CPU, not in float64, with D up to 256 and up to 64 classes per pixel.

    It is also true for the fake tensors that memory is planned on; for those, `embedding_loss` only allocates its buffers.
    KILOSEG_NATIVE=0 in the environment turns the kernel off, for comparison.
    """
    return (
        pixels_BDhw.is_cpu
        and pixels_BDhw.dtype != torch.float64
        and pixels_BDhw.shape[1] <= cpu.MAX_DIM
        and negatives.own <= cpu.MAX_NEAREST
        and cpu.holds_data(pixels_BDhw) is not None
        and cpu.library() is not None
    )


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

    Besides the gradients, about four matrices of BLOCK_BYTES are alive at a time, plus the weights of a block to all classes,
    which take at most `tile_bytes`. If a few groups of pixels do not fit, these weights are computed twice. The threads share all
    of this, so neither memory nor the result depends on the number of threads; each thread has 0.5 MiB of its own on its stack.

    Args:
        pixels_BDhw: the pixel embeddings, float32.
        rows_CD: the class table, rows of unit length, float32.
        labels_BHW: int64, classes or `ignore_index`.
        negatives: the classes that pixels are compared with.
        temperature: the factor tau.
        cosine: whether logits are cosines; otherwise they are distances.
        ignore_index: the label of pixels that do not count.
        tile_bytes: the target size of a matrix of scores in bytes; None means kiloseg.ops.tiles.TILE_BYTES.
        wants_grad: whether to compute gradients; if not, None is returned for them.
    """
    if cpu_cells.pays(pixels_BDhw, labels_BHW, negatives, cosine=cosine):
        return cpu_cells.embedding_loss(
            pixels_BDhw,
            rows_CD,
            labels_BHW,
            negatives=negatives,
            temperature=temperature,
            cosine=cosine,
            ignore_index=ignore_index,
            tile_bytes=tile_bytes,
            wants_grad=wants_grad,
        )
    B, D, h, w = pixels_BDhw.shape
    _, H, W = labels_BHW.shape
    C = len(rows_CD)
    group = cpu.lanes().group
    tile_bytes = tile_bytes or TILE_BYTES["cpu"]
    if not pixels_BDhw.is_contiguous(memory_format=torch.channels_last):
        pixels_BDhw = pixels_BDhw.contiguous()
    labels_BHW = labels_BHW.contiguous()
    counts_BHW = labels_BHW != ignore_index
    drawn_S = column_C = candidates = grad_candidates = None
    if negatives.drawn:
        drawn_S = draw_candidates(negatives.drawn, labels_BHW.where(counts_BHW, -1), C)
    rows = cpu.whole_rows(rows_CD, tiles=not negatives.shares)  # if candidates are shared, only targets are read
    S, K = 0, negatives.own
    capacity = BLOCK_BYTES // (4 * rows.shape[1])
    if negatives.shares:
        # The rows are premultiplied by the factor that turns their product with a pixel into a logit or a squared distance.
        scale = temperature * LOG2E if cosine else -2 * (temperature * LOG2E) ** 2
        shared = rows_CD if drawn_S is None else rows_CD[drawn_S]
        candidates, S = cpu.whole_rows(shared * scale), len(shared)
        grad_candidates = torch.zeros_like(candidates) if wants_grad else None
        column_C = None if drawn_S is None else candidate_columns(drawn_S, C)
        room = tile_bytes // (4 * group * len(candidates))
        keeps = wants_grad and room >= _MIN_GROUPS
        capacity = min(capacity, room * group) if keeps else capacity
    else:
        keeps = False
        capacity = min(capacity, BLOCK_BYTES // (4 * K))
    compares_all = negatives.shares and drawn_S is None
    grad_rows = grad_candidates if compares_all else torch.zeros_like(rows) if wants_grad else None
    groups = max(min(capacity, H * W) // group, 1)

    def buffer(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=pixels_BDhw.device)

    result = buffer()
    grad_pixels = torch.empty_like(pixels_BDhw) if wants_grad else None
    width = rows.shape[1]
    memory: dict[str, Tensor | None] = {
        "map": buffer(h, w, width),
        "grad_map": buffer(h, w, width),
        "o": buffer(groups * group, width),
        "grad": buffer(groups * group, width),
        "unit": buffer(groups, D, group),
        "kept": buffer(groups, len(candidates), group) if candidates is not None and keeps else None,
        "scalars": buffer(_SCALARS, groups * group),
        "own_weights": buffer(groups, K, group),
    }
    integers = buffer(_INTEGERS, 2, groups * group, dtype=torch.int32)
    own_ids = buffer(groups, K, group, dtype=torch.int32)
    if cpu.holds_data(pixels_BDhw):
        image_stride, dim_stride, row_stride, column_stride = pixels_BDhw.stride()
        assert grad_pixels is None or grad_pixels.stride() == pixels_BDhw.stride()
        call = _Loss(
            B=B, D=D, h=h, w=w, H=H, W=W, C=C, S=S, K=K,
            searched=negatives.nearest,
            width=width,
            capacity=groups * group,
            keeps_weights=keeps,
            threads=torch.get_num_threads(),
            cosine=cosine,
            ignore=ignore_index,
            wants_grad=wants_grad,
            needs_top=2 * temperature > SAFE_EXPONENT,
            image_stride=image_stride,
            dim_stride=dim_stride,
            row_stride=row_stride,
            column_stride=column_stride,
            tau=temperature,
            weight=1 / max(int(counts_BHW.sum()), 1),
            pixels=pixels_BDhw.data_ptr(),
            labels=cpu.pointer("labels", labels_BHW, torch.int64),
            rows=cpu.pointer("rows", rows),
            candidates=cpu.pointer("candidates", candidates),
            left_out=cpu.pointer("column_C", column_C, torch.int64),
            drawn=cpu.pointer("drawn_S", drawn_S, torch.int64),
            num_drawn=0 if drawn_S is None else len(drawn_S),
            grad_pixels=None if grad_pixels is None else grad_pixels.data_ptr(),
            grad_rows=cpu.pointer("grad_rows", grad_rows),
            grad_candidates=cpu.pointer("grad_candidates", grad_candidates),
            result=cpu.pointer("result", result),
            integers=cpu.pointer("integers", integers, torch.int32),
            own_ids=cpu.pointer("own_ids", own_ids, torch.int32),
            **{name: cpu.pointer(name, tensor) for name, tensor in memory.items()},
        )  # fmt: skip
        kernels = cpu.library()
        assert kernels is not None
        kernels.kiloseg_loss(ctypes.byref(call))
    if grad_rows is None:
        return result, None, None
    grad_CD = grad_rows[:C, :D]
    if drawn_S is not None and grad_candidates is not None:
        grad_CD.index_add_(0, drawn_S, grad_candidates[:S, :D])
    return result, grad_pixels, grad_CD.contiguous()
