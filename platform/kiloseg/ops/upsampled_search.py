"""Finds the best classes of every pixel of an upsampled map, from scores at feature cells, with a kernel or torch.

Scores commute with upsampling, and dividing a pixel's scores by its length does not change their order. So the products of
embeddings and table are taken at the cells, and their scores are upsampled inside a tile, where a running best is kept.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, K classes sought.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from kiloseg.ops import cpu
from kiloseg.ops import triton as triton_kernels
from kiloseg.ops.tiles import TILE_BYTES, tile_pixels, tiles
from kiloseg.ops.upsampling import BlockwiseUpsampling, blocks_of_patches, num_pixels, patches

MAX_BEST = 2
"""The most classes that are sought on a CPU. With torch's operations, 8 of 1,284 took 0.92 to 0.97 x as long as at pixels."""

PATCH_PIXELS = 128
"""The target number of pixels in a patch, which torch's operations upsample at a time."""

MIN_TORCH_DIM = 64
"""The fewest dimensions for which torch's operations take scores at cells. At 1,284 classes and stride 4, one class took 0.8 x as
long at 128 dimensions, 0.9 x at 64 and 1.8 x at 12."""

MIN_TORCH_PRODUCTS = 2**16
"""The smallest product of dimensions and classes for that: with 150 classes and 128 dimensions it took 1.1 x as long."""

MIN_TORCH_FACTOR = 16
"""The fewest pixels per feature cell for that, as for the loss (`kiloseg.losses.reference_cells`)."""


class _Best(ctypes.Structure):
    """Mirrors `struct best` of ops/cpu/cells_best.c."""

    _fields_ = (
        ("cells", cpu.Cells),
        ("K", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("scores", "ids", "labels", "cosines")),
    )


def supports(pixels_BDhw: Tensor, size: tuple[int, int], count: int, num_classes: int) -> bool:
    """Whether a search by scores at cells is possible and pays off.

    On a CPU it is for one or two classes and for types that are widened to float32: with the C kernel from upsampling to 4 x the
    pixels on, without it from MIN_TORCH_DIM, MIN_TORCH_PRODUCTS and MIN_TORCH_FACTOR on. On a GPU with Triton it is for up to
    MAX_NEAREST classes and what `kiloseg.ops.triton.pays_at_cells` says.
    """
    _, D, h, w = pixels_BDhw.shape
    if _runs_triton(pixels_BDhw):
        return count <= triton_kernels.MAX_NEAREST and triton_kernels.pays_at_cells(pixels_BDhw, size)
    if not pixels_BDhw.is_cpu or count > MAX_BEST or cpu.holds_data(pixels_BDhw) is None:
        return False
    if _runs_cpu_kernel(pixels_BDhw):
        return size[0] * size[1] >= 4 * h * w
    return (
        pixels_BDhw.dtype != torch.float64
        and D >= MIN_TORCH_DIM
        and D * num_classes >= MIN_TORCH_PRODUCTS
        and size[0] * size[1] >= MIN_TORCH_FACTOR * h * w
    )


def best_classes(
    pixels_BDhw: Tensor, rows_CD: Tensor, size: tuple[int, int], count: int, *, wants_cosines: bool
) -> tuple[Tensor, Tensor | None]:
    """Finds the `count` classes of highest cosine for every pixel, best first: int64 (K, B, H, W), and the cosines if wanted.

    Besides these, memory on a CPU holds the map of one image, the table in panels, the scores of a block of cells with a chunk of
    the classes (about TILE_BYTES), and 2 K numbers for each pixel of a block. Without the C kernel it holds the map and the table
    once more and two matrices of scores, one of them of about TILE_BYTES. On a GPU it holds the maps of a block's images and the
    table, both in 6 bytes a value, and 12 K bytes for each pixel of these images.

    Args:
        pixels_BDhw: the pixel embeddings, of a type that `supports` accepts.
        rows_CD: the rows, of unit length, float32.
        size: the size (H, W) in pixels.
        count: the number K of classes, which `supports` accepts, and at most C.
        wants_cosines: whether to return the cosines, float32 (K, B, H, W).
    """
    # Scores are float32 also where the network that made the embeddings runs in mixed precision.
    with torch.autocast(pixels_BDhw.device.type, enabled=False):
        if _runs_triton(pixels_BDhw):
            return _best_by_triton(pixels_BDhw, rows_CD, size, count, wants_cosines=wants_cosines)
        find = _best_by_cpu_kernel if _runs_cpu_kernel(pixels_BDhw) else _best_by_torch
        return find(pixels_BDhw.float(), rows_CD, size, count, wants_cosines=wants_cosines)


def _runs_cpu_kernel(pixels_BDhw: Tensor) -> bool:
    return pixels_BDhw.dtype != torch.float64 and pixels_BDhw.shape[1] <= cpu.MAX_DIM and cpu.library() is not None


def _runs_triton(pixels_BDhw: Tensor) -> bool:
    # Kernels read float32 data, which fake tensors do not have.
    readable = pixels_BDhw.dtype != torch.float64 and cpu.holds_data(pixels_BDhw) is True
    return readable and triton_kernels.available(pixels_BDhw.device)


def _best_by_triton(
    pixels_BDhw: Tensor, rows_CD: Tensor, size: tuple[int, int], count: int, *, wants_cosines: bool
) -> tuple[Tensor, Tensor | None]:
    from kiloseg.ops.triton.cells import blocks
    from kiloseg.ops.triton.cells_search import search_patches
    from kiloseg.ops.triton.scores import pieces

    B, device = len(pixels_BDhw), pixels_BDhw.device
    sorts = count > 1
    labels_KBHW = torch.empty((count, B, *size), dtype=torch.int64, device=device)
    cosines_KBHW = torch.empty((count, B, *size), device=device) if wants_cosines else None
    # Triton starts kernels on the current device.
    with torch.cuda.device_of(pixels_BDhw):
        classes = pieces(rows_CD.contiguous())
        for images, bands in blocks(pixels_BDhw, size):
            shape = (images.stop - images.start, *size, count)
            ids_bHWK = torch.empty(shape, dtype=torch.int64, device=device)
            cosines_bHWK = torch.empty(shape, device=device) if wants_cosines or sorts else None
            for patches in bands:
                search_patches(patches, classes, ids_bHWK, cosines_bHWK)
            if cosines_bHWK is not None and sorts:
                cosines_bHWK, order = cosines_bHWK.sort(dim=3, descending=True, stable=True)
                ids_bHWK = ids_bHWK.gather(3, order)
            labels_KBHW[:, images] = ids_bHWK.movedim(3, 0)
            if cosines_KBHW is not None and cosines_bHWK is not None:
                cosines_KBHW[:, images] = cosines_bHWK.movedim(3, 0)
    return labels_KBHW, cosines_KBHW


def _best_by_torch(
    pixels_BDhw: Tensor, rows_CD: Tensor, size: tuple[int, int], count: int, *, wants_cosines: bool
) -> tuple[Tensor, Tensor | None]:
    B, _, h, w = pixels_BDhw.shape
    C, device = len(rows_CD), pixels_BDhw.device
    rows_DC = rows_CD.T.contiguous()
    upsampling = BlockwiseUpsampling((h, w), size, pixels_BDhw)
    labels_KBHW = torch.empty((count, B, *size), dtype=torch.int64, device=device)
    cosines_KBHW = torch.empty((count, B, *size), device=device) if wants_cosines else None
    blocks = blocks_of_patches(B, patches((h, w), size, PATCH_PIXELS), tile_pixels(C, pixels_BDhw))
    # All blocks share one buffer: fresh memory of this size costs more in page faults than the product itself.
    buffer = pixels_BDhw.new_empty(num_pixels(blocks[0]) * C)
    for one in tiles(len(blocks), 1):
        block = blocks[one.start]
        cells_NkD = torch.stack([pixels_BDhw[image, :, y[1], x[1]].flatten(1).T for image, (y, x) in block])
        interpolation_NPk = torch.stack([upsampling.patch(patch) for _, patch in block])
        N, P, k = interpolation_NPk.shape
        scores_NkC = (cells_NkD.flatten(0, 1) @ rows_DC).view(N, k, C)
        scores_NPC = torch.bmm(interpolation_NPk, scores_NkC, out=buffer[: N * P * C].view(N, P, C))
        best_NPK, ids_NPK = scores_NPC.max(2, keepdim=True) if count == 1 else scores_NPC.topk(count, dim=2)
        if wants_cosines:
            lengths_NP1 = torch.linalg.vector_norm(interpolation_NPk @ cells_NkD, dim=2, keepdim=True)
            best_NPK = best_NPK / lengths_NP1.clamp_(min=1e-12)
        for number, (image, (y, x)) in enumerate(block):
            part = (slice(None), image, y[0], x[0])
            labels_KBHW[part] = ids_NPK[number].T.reshape(labels_KBHW[part].shape)
            if cosines_KBHW is not None:
                cosines_KBHW[part] = best_NPK[number].T.reshape(cosines_KBHW[part].shape)
    return labels_KBHW, cosines_KBHW


def _best_by_cpu_kernel(
    pixels_BDhw: Tensor, rows_CD: Tensor, size: tuple[int, int], count: int, *, wants_cosines: bool
) -> tuple[Tensor, Tensor | None]:
    B = len(pixels_BDhw)
    if not pixels_BDhw.is_contiguous(memory_format=torch.channels_last):
        pixels_BDhw = pixels_BDhw.contiguous()
    search = cpu.CellsSearch(pixels_BDhw, rows_CD, size, TILE_BYTES["cpu"])
    device = pixels_BDhw.device
    labels_KBHW = torch.empty((count, B, *size), dtype=torch.int64, device=device)
    cosines_KBHW = torch.empty((count, B, *size), device=device) if wants_cosines else None
    best_scores, best_ids = (
        torch.empty((count, search.capacity), dtype=dtype, device=device) for dtype in (torch.float32, torch.int32)
    )
    if cpu.holds_data(pixels_BDhw):
        call = _Best(
            cells=search.arguments(),
            K=count,
            scores=cpu.pointer("scores", best_scores),
            ids=cpu.pointer("ids", best_ids, torch.int32),
            labels=cpu.pointer("labels", labels_KBHW, torch.int64),
            cosines=cpu.pointer("cosines", cosines_KBHW),
        )
        kernels = cpu.library()
        assert kernels is not None
        kernels.kiloseg_best(ctypes.byref(call))
    return labels_KBHW, cosines_KBHW
