"""Computes the embedding loss on a CPU with a compiled kernel, in one pass over the pixels that count.

Elsewhere, and where there is no compiler, `kiloseg.losses.reference` computes the same with torch's operations; it is the
reference.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, S candidates shared by all pixels, K classes of a
pixel's own.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from kiloseg.losses import cpu_cells
from kiloseg.losses.cpu_batch import CpuBatch, pointers
from kiloseg.losses.negatives import ResolvedNegatives, candidate_columns
from kiloseg.ops import cpu
from kiloseg.ops.logits import LOG2E

BLOCK_BYTES = 2**19
"""The target size of one matrix of a block's pixels, in bytes. About four such matrices are alive at once."""

_MIN_GROUPS = 4
"""The weights of a block to all classes are kept only if there is room for at least this many groups of pixels."""

_SCALARS, _INTEGERS = 4, 3  # values per pixel; see ops/cpu/loss.h

MIN_SEARCH_PRODUCTS = 2**16
"""The smallest product of classes and dimensions for which nearest classes are sought by scores at feature cells.

With 8 nearest, the loss took 0.58 x the time at 1,284 classes and 128 dimensions, 0.92 x at 32 and 1.23 x at 12 (see
benchmarks/README.md)."""


class _NearestCells(ctypes.Structure):
    """Mirrors `struct nearest_cells` of ops/cpu/cells_nearest.c."""

    _fields_ = (
        ("cells", cpu.Cells),
        ("K", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("scores", "ids")),
    )


class _Loss(cpu.Batch):
    """Mirrors `struct loss` of ops/cpu/loss.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("C", "S", "K", "searched", "capacity", "keeps_weights")),
        *((name, ctypes.c_void_p) for name in ("rows", "candidates", "left_out", "drawn")),
        ("num_drawn", ctypes.c_int64),
        ("search", ctypes.POINTER(_NearestCells)),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "grad_rows", "grad_candidates",
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
    batch = CpuBatch.of(
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
    if cpu_cells.pays(pixels_BDhw, labels_BHW, negatives, cosine=cosine):
        return cpu_cells.embedding_loss(batch)
    return _loss_at_pixels(batch)


def searches_at_cells(batch: CpuBatch) -> bool:
    """Whether nearest classes are sought by scores at cells: for a large table, if upsampling gives at least 4 x the pixels."""
    _, D, h, w = batch.pixels_BDhw.shape
    _, H, W = batch.labels_BHW.shape
    large = len(batch.rows_CD) * D >= MIN_SEARCH_PRODUCTS
    return large and 4 * h * w <= H * W and 1 <= batch.negatives.nearest <= cpu.cells_sizes().nearest


class _Shared(NamedTuple):
    """Holds the candidates that all pixels share, as the kernel reads them; all None or 0 if there are none."""

    rows: Tensor | None
    """(S, width), padded to whole tiles, times a factor that turns a product into a logit or a squared distance."""
    num_rows: int
    """S, without the padding."""
    left_out_C: Tensor | None
    """The candidate that pixels of a class leave out, int64; None for their own class."""
    room: int
    """The number of groups of pixels whose weights fit into `tile_bytes`."""


def _shared(batch: CpuBatch, group: int) -> _Shared:
    if not batch.negatives.shares:
        return _Shared(None, 0, None, 0)
    tau = batch.temperature * LOG2E
    scale = tau if batch.cosine else -2 * tau**2
    drawn_S = batch.drawn_S
    shared = batch.rows_CD if drawn_S is None else batch.rows_CD[drawn_S]
    rows = cpu.whole_rows(shared * scale)
    left_out_C = None if drawn_S is None else candidate_columns(drawn_S, len(batch.rows_CD))
    return _Shared(rows, len(shared), left_out_C, batch.tile_bytes // (4 * group * len(rows)))


def _loss_at_pixels(batch: CpuBatch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Computes the loss with products of embeddings and table at every pixel, or for nearest classes perhaps at every cell."""
    _, D, h, w = batch.pixels_BDhw.shape
    _, H, W = batch.labels_BHW.shape
    C, K = len(batch.rows_CD), batch.negatives.own
    group = cpu.lanes().group
    rows = cpu.whole_rows(
        batch.rows_CD, tiles=not batch.negatives.shares
    )  # if candidates are shared, only targets are read
    width = rows.shape[1]
    shared = _shared(batch, group)
    keeps = batch.wants_grad and shared.room >= _MIN_GROUPS
    capacity = min(BLOCK_BYTES // (4 * width), shared.room * group if keeps else H * W)
    if K:
        capacity = min(capacity, BLOCK_BYTES // (4 * K))
    groups = max(min(capacity, H * W) // group, 1)
    grad_candidates = torch.zeros_like(shared.rows) if batch.wants_grad and shared.rows is not None else None
    compares_all = shared.rows is not None and batch.drawn_S is None
    grad_rows = grad_candidates if compares_all else torch.zeros_like(rows) if batch.wants_grad else None
    result, grad_pixels = batch.buffer(), batch.gradient()
    floats: dict[str, Tensor | None] = {
        "rows": rows,
        "candidates": shared.rows,
        "grad_rows": grad_rows,
        "grad_candidates": grad_candidates,
        "map": batch.buffer(h * w + cpu.PADDING, width).zero_(),
        "grad_map": batch.buffer(h, w, width).zero_(),
        "o": batch.buffer(groups * group, width),
        "grad": batch.buffer(groups * group, width).zero_(),
        "unit": batch.buffer(groups, D, group),
        "kept": batch.buffer(groups, len(shared.rows), group) if shared.rows is not None and keeps else None,
        "scalars": batch.buffer(_SCALARS, groups * group),
        "own_weights": batch.buffer(groups, K, group),
    }
    integers: dict[str, Tensor | None] = {
        "integers": batch.buffer(_INTEGERS, 2, groups * group, dtype=torch.int32),
        "own_ids": batch.buffer(groups, K, group, dtype=torch.int32),
    }
    search = _Search(batch, floats["map"]) if searches_at_cells(batch) else None
    if cpu.holds_data(batch.pixels_BDhw):
        call = _Loss(
            C=C, S=shared.num_rows, K=K,
            searched=batch.negatives.nearest,
            capacity=groups * group,
            keeps_weights=keeps,
            num_drawn=0 if batch.drawn_S is None else len(batch.drawn_S),
            search=None if search is None else ctypes.pointer(search.arguments()),
            **pointers({"left_out": shared.left_out_C, "drawn": batch.drawn_S}, torch.int64),
            **pointers(floats),
            **pointers(integers, torch.int32),
            **batch.arguments(width, grad_pixels, result),
        )  # fmt: skip
        kernels = cpu.library()
        assert kernels is not None
        kernels.kiloseg_loss(ctypes.byref(call))
    if grad_rows is None:
        return result, None, None
    grad_CD = grad_rows[:C, :D]
    if batch.drawn_S is not None and grad_candidates is not None:
        grad_CD.index_add_(0, batch.drawn_S, grad_candidates[: shared.num_rows, :D])
    return result, grad_pixels, grad_CD.contiguous()


class _Search:
    """Holds the search for the nearest classes by scores at feature cells, block by block, and its buffers.

    They are the table in panels, scores of about `tile_bytes`, and 2 K numbers for each pixel of a block of about
    `kiloseg.ops.cpu.cells.SEARCH_CELLS` cells.
    """

    def __init__(self, batch: CpuBatch, map_cells: Tensor | None) -> None:
        K = batch.negatives.nearest
        _, H, W = batch.labels_BHW.shape
        self.batch = batch
        self.cells = cpu.CellsSearch(batch.pixels_BDhw, batch.rows_CD, (H, W), batch.tile_bytes, map_cells)
        self.scores = batch.buffer(self.cells.capacity, K)
        self.ids = batch.buffer(self.cells.capacity, K, dtype=torch.int32)

    def arguments(self) -> _NearestCells:
        """Returns the arguments; only for tensors that hold data."""
        labels = cpu.pointer("labels", self.batch.labels_BHW, torch.int64)
        return _NearestCells(
            cells=self.cells.arguments(labels=labels, ignore=self.batch.ignore_index),
            K=self.batch.negatives.nearest,
            scores=cpu.pointer("scores", self.scores),
            ids=cpu.pointer("ids", self.ids, torch.int32),
        )
