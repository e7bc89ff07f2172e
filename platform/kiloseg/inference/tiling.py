"""Predicts images of any size; the memory for the network's outputs grows with the image's width but not with its height.

The network sees one tile at a time. Neighboring tiles overlap, and in the overlap their outputs are blended before a class is
chosen, so that no seam shows. Of the blended outputs, only a strip as high as a tile and as wide as the image is in memory.

Shapes: H W pixels, padded to multiples of 32; h w feature cells; N channels of the network's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.models.heads import Prediction

STRIDE = 32
"""Networks accept images whose sides are multiples of this, in pixels."""
BAND_PIXELS = 2**21
"""Target number of pixels whose classes are decided at once; more than a tile of the default size has."""
CONTEXT = 1
"""Number of feature rows that bilinear upsampling reads on each side of a pixel's own row."""


def predict_tiled(
    outputs_of: Callable[[Tensor], Tensor],
    decide: Callable[[Tensor, tuple[int, int]], Prediction],
    pixels_HW3: np.ndarray,
    *,
    tile: int,
    overlap: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts the labels and confidences of an image.

    An image that fits into one tile is predicted as in validation: padded with zeros on the right and at the bottom.

    Args:
        outputs_of: function from uint8 images (B, 3, H, W) to the network's outputs.
        decide: function from outputs and a size to labels and confidences; see `Head.predict_confidence`.
        pixels_HW3: the image, uint8.
        tile: side of a tile in pixels, a multiple of 32.
        overlap: pixels by which neighboring tiles overlap, a multiple of 32 below `tile`.

    Returns:
        Labels (int32, H, W) and confidences (float16, H, W).

    Raises:
        ValueError: `tile` or `overlap` is impossible.
    """
    check_tiles(tile, overlap)
    height, width = pixels_HW3.shape[:2]
    labels_HW = np.empty((height, width), dtype=np.int32)
    confidence_HW = np.empty((height, width), dtype=np.float16)
    row = 0
    for outputs_1Nhw, cells, stride in blended(outputs_of, pixels_HW3, tile, overlap):
        for part_1Nhw, taken, below in row_bands(outputs_1Nhw, cells, stride, BAND_PIXELS):
            decided = decide(part_1Nhw, (part_1Nhw.shape[2] * stride, part_1Nhw.shape[3] * stride))
            rows = min(taken.stop - taken.start, height - row - below)
            taken = slice(taken.start, taken.start + max(rows, 0))
            place = slice(row + below, row + below + max(rows, 0))
            labels_HW[place] = decided.labels[0, taken, :width].cpu().numpy()
            confidence_HW[place] = decided.confidence[0, taken, :width].cpu().numpy()
        row += (cells.stop - cells.start) * stride
        del outputs_1Nhw, part_1Nhw, decided  # or they would be alive while the next strip is computed
    return labels_HW, confidence_HW


def check_tiles(tile: int, overlap: int) -> None:
    """Raises ValueError if tiles cannot have this side and overlap, in pixels."""
    if tile < STRIDE or tile % STRIDE or overlap % STRIDE or not 0 <= overlap < tile:
        raise ValueError(
            f"tile = {tile}, overlap = {overlap}: expected multiples of {STRIDE}, the tile at least {STRIDE} and the overlap "
            "0 or more and less than the tile"
        )


def blended(
    outputs_of: Callable[[Tensor], Tensor], pixels_HW3: np.ndarray, tile: int, overlap: int
) -> Iterator[tuple[Tensor, slice, int]]:
    """Yields blended outputs from top to bottom: rows of cells with context, the slice of rows to decide, and pixels per cell.

    Rows to which a lower tile adds are held back until it has done so, and so is one more row, which needs the next row as
    context.
    """
    height, width = padded_size(pixels_HW3)
    tops, lefts = _starts(height, tile, overlap), _starts(width, tile, overlap)
    sums = weights = rows = None
    first = 0  # index of the first row to decide
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        new_sums, new_weights, stride = _strip(outputs_of, pixels_HW3, top, lefts, (height, width), tile, overlap)
        if sums is not None and weights is not None:
            new_sums[:, :, : sums.shape[2]] += sums
            new_weights[:, :, : weights.shape[2]] += weights
        done = (following - top) // stride
        sums, weights = new_sums[:, :, done:].clone(), new_weights[:, :, done:].clone()
        # A strip is large: what is finished replaces its sums in place, and no second copy is alive while rows are decided.
        blended = new_sums[:, :, :done].div_(new_weights[:, :, :done])
        rows = blended if rows is None else torch.cat([rows, blended], dim=2)
        del new_sums, blended
        end = rows.shape[2] - (CONTEXT if following < height else 0)
        if end > first:
            yield rows, slice(first, end), stride
        first = max(first, end)
        kept = max(first - CONTEXT, 0)
        rows, first = rows[:, :, kept:].clone(), first - kept


def row_bands(outputs_1Nhw: Tensor, cells: slice, stride: int, pixels: int) -> Iterator[tuple[Tensor, slice, int]]:
    """Splits rows of cells into bands, so that what is computed per pixel needs memory for one band only.

    Args:
        outputs_1Nhw: outputs of the network.
        cells: the rows of cells to split; the rows next to them are context.
        stride: pixels per cell.
        pixels: target number of pixels of a band.

    Yields:
        The outputs of a band with context; which of their rows belong to the band, in pixels after upsampling by `stride`; and
        the position in pixels of the band's first row below the first row of `cells`.
    """
    h, w = outputs_1Nhw.shape[2:]
    step = max(pixels // (stride * stride * w), 1)
    for start in range(cells.start, cells.stop, step):
        stop = min(start + step, cells.stop)
        first, last = max(start - CONTEXT, 0), min(stop + CONTEXT, h)
        taken = slice((start - first) * stride, (stop - first) * stride)
        yield outputs_1Nhw[:, :, first:last], taken, (start - cells.start) * stride


def _strip(
    outputs_of: Callable[[Tensor], Tensor],
    pixels_HW3: np.ndarray,
    top: int,
    lefts: list[int],
    size: tuple[int, int],
    tile: int,
    overlap: int,
) -> tuple[Tensor, Tensor, int]:
    """Returns the weighted sums (1, N, h, w) of a row of tiles, the weights (1, 1, h, w), and the pixels per cell."""
    height, width = min(tile, size[0]), min(tile, size[1])
    strip = weights = None
    for left in lefts:
        outputs = outputs_of(_cut(pixels_HW3, top, left, height, width)).float()
        stride = width // outputs.shape[3]
        if strip is None or weights is None:
            strip = outputs.new_zeros((1, outputs.shape[1], height // stride, size[1] // stride))
            weights = outputs.new_zeros((1, 1, height // stride, size[1] // stride))
        ramp_h = _ramp(height // stride, overlap // stride, top > 0, top + height < size[0])
        ramp_w = _ramp(width // stride, overlap // stride, left > 0, left + width < size[1])
        weight = (ramp_h[:, None] * ramp_w).to(outputs.device)
        columns = slice(left // stride, (left + width) // stride)
        strip[..., columns] += outputs * weight
        weights[..., columns] += weight
    assert strip is not None and weights is not None
    return strip, weights, stride


def _cut(pixels_HW3: np.ndarray, top: int, left: int, height: int, width: int) -> Tensor:
    piece = torch.from_numpy(
        np.ascontiguousarray(pixels_HW3[top : top + height, left : left + width].transpose(2, 0, 1))
    )
    return F.pad(piece, (0, width - piece.shape[2], 0, height - piece.shape[1]))[None]


def _ramp(cells: int, overlap: int, before: bool, after: bool) -> Tensor:
    """Returns weights along one side of a tile: they rise over the overlap with a tile before it and fall over one after it."""
    ramp = torch.ones(cells)
    rising = (torch.arange(overlap) + 0.5) / max(overlap, 1)
    if before:
        ramp[:overlap] *= rising
    if after:
        ramp[cells - overlap :] *= rising.flip(0)
    return ramp


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Returns where tiles begin: each starts `overlap` before the end of the previous one; the last ends with the image."""
    if side <= tile:
        return [0]
    step = tile - overlap
    return [*range(0, side - tile, step), side - tile]


def padded_size(pixels_HW3: np.ndarray) -> tuple[int, int]:
    """Returns height and width of an image after it is padded to multiples of STRIDE."""
    height, width = (-(-side // STRIDE) * STRIDE for side in pixels_HW3.shape[:2])
    return height, width


def padded_tensor(pixels_HW3: np.ndarray) -> Tensor:
    """Returns an image as the network gets it if it fits into one tile: uint8 (3, H, W), padded with zeros."""
    return _cut(pixels_HW3, 0, 0, *padded_size(pixels_HW3))[0]
