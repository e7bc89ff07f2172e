"""Reads examples of a new class, images with a mask, and computes the embeddings of their pixels.

Shapes: H W pixels, h w feature cells, D embedding, S sampled pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kiloseg.inference.images import as_pixels
from kiloseg.inference.tiling import STRIDE
from kiloseg.models import Segmenter

MAX_SIDE = 1024
"""Longest side of an example, in pixels; larger examples are scaled down."""
BATCH_PIXELS = 2**18
"""Most pixels that go through the network at a time, apart from those of a single larger example."""
PIXELS = 2**16
"""Most pixels whose embeddings are computed at a time."""
SAMPLES = 128
"""Most pixels that are kept of an example, inside and outside of the mask each."""

Example = tuple[np.ndarray | Path | str, np.ndarray | Path | str]
"""An image and a mask of the same size, whose nonzero pixels show the class: files, or arrays (H, W, 3) and (H, W)."""


class Embedded(NamedTuple):
    """Holds the embeddings of an example as unit vectors."""

    mean: Tensor
    """Mean over the marked pixels, normalized: float64 (D,)."""
    inside: Tensor
    """Some marked pixels, drawn at random: float32 (S, D)."""
    outside: Tensor
    """Some other pixels, drawn at random: float32 (S, D)."""
    share: float
    """Share of the image that the mask marks, above 0 and up to 1."""


@torch.no_grad()
def embed_examples(segmenter: Segmenter, examples: Sequence[Example]) -> list[Embedded]:
    """Computes the embeddings of examples. Examples of equal size go through the network together.

    Raises:
        ValueError: an example cannot be read, its mask is empty or has another size than the image.
    """
    read = [_read(*example) for example in examples]
    order = sorted(range(len(read)), key=lambda number: read[number][0].shape)
    found: dict[int, Embedded] = {}
    for numbers in _batches(order, [read[number][0].shape[:2] for number in range(len(read))]):
        height, width = (max(read[number][0].shape[axis] for number in numbers) for axis in (0, 1))
        images = torch.zeros((len(numbers), 3, -(-height // STRIDE) * STRIDE, -(-width // STRIDE) * STRIDE))
        for image, number in zip(images, numbers, strict=True):
            pixels = torch.from_numpy(read[number][0].transpose(2, 0, 1).copy())
            image[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        images = images.to(
            next(segmenter.parameters()).device, memory_format=torch.channels_last
        )  # a fifth faster on a CPU
        outputs_BDhw = segmenter(images).float()
        stride = images.shape[3] // outputs_BDhw.shape[3]
        for outputs_Dhw, number in zip(outputs_BDhw, numbers, strict=True):
            found[number] = _embedded(outputs_Dhw[None], read[number][1], stride)
    return [found[number] for number in range(len(read))]


def _batches(order: Sequence[int], sizes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Yields numbers of examples of equal size, at most BATCH_PIXELS together."""
    for size, numbers in itertools.groupby(order, key=lambda number: sizes[number]):
        most = max(BATCH_PIXELS // (size[0] * size[1]), 1)
        alike = list(numbers)
        yield from (alike[start : start + most] for start in range(0, len(alike), most))


def _embedded(outputs_1Dhw: Tensor, marked_HW: np.ndarray, stride: int) -> Embedded:
    generator = np.random.default_rng(0)
    marked_M, others_O = np.flatnonzero(marked_HW), np.flatnonzero(~marked_HW)
    total_D = torch.zeros(outputs_1Dhw.shape[1], dtype=torch.float64, device=outputs_1Dhw.device)
    for start in range(0, len(marked_M), PIXELS):
        total_D += _pixels(outputs_1Dhw, marked_M[start : start + PIXELS], marked_HW.shape[1], stride).double().sum(0)
    inside, outside = (
        _pixels(outputs_1Dhw, np.sort(generator.permutation(places)[:SAMPLES]), marked_HW.shape[1], stride).cpu()
        for places in (marked_M, others_O)
    )
    return Embedded(F.normalize(total_D, dim=0).cpu(), inside, outside, float(marked_HW.mean()))


def _pixels(outputs_1Dhw: Tensor, places_N: np.ndarray, width: int, stride: int) -> Tensor:
    """Returns the embeddings of some pixels as unit vectors (N, D).

    They equal those of the whole map after bilinear upsampling, of which only these pixels are computed.

    Args:
        outputs_1Dhw: the feature map.
        places_N: the pixels, numbered row by row.
        width: the number of pixels in a row.
        stride: the side of a cell, in pixels.
    """
    sides = np.array(outputs_1Dhw.shape[:1:-1]) * stride
    centers_N2 = np.stack([places_N % width, places_N // width], axis=1) + 0.5
    grid_N2 = torch.from_numpy(2 * centers_N2 / sides - 1).to(outputs_1Dhw)
    pixels_1D1N = F.grid_sample(outputs_1Dhw, grid_N2[None, None], padding_mode="border", align_corners=False)
    return F.normalize(pixels_1D1N[0, :, 0].T, dim=1)


def _read(image: np.ndarray | Path | str, mask: np.ndarray | Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels (H, W, 3) and the marked pixels (H, W) of an example, scaled down if it is large."""
    pixels_HW3 = as_pixels(image)
    mask_name = "given as pixels" if isinstance(mask, np.ndarray) else str(mask)
    image_name = "given as pixels" if isinstance(image, np.ndarray) else str(image)
    values = mask if isinstance(mask, np.ndarray) else _mask_values(mask)
    marked_HW = np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))
    if marked_HW.shape != pixels_HW3.shape[:2]:
        raise ValueError(
            f"mask {mask_name} is {marked_HW.shape}, its image {image_name} {pixels_HW3.shape[:2]} (height, width): expected "
            "equal sizes"
        )
    if not marked_HW.any():
        raise ValueError(f"mask {mask_name} is empty: expected pixels other than 0 where the class is")
    shrink = max(max(marked_HW.shape) / MAX_SIDE, 1)
    if shrink == 1:
        return pixels_HW3, marked_HW
    size = tuple(max(round(side / shrink), 1) for side in marked_HW.shape)
    smaller = np.asarray(Image.fromarray(pixels_HW3).resize(size[::-1]))
    marked = np.array(Image.fromarray(marked_HW).resize(size[::-1], Image.Resampling.NEAREST))
    if not marked.any():
        raise ValueError(f"mask {mask_name} marks too few pixels to be seen at {size} pixels: expected a larger object")
    return smaller, marked


def _mask_values(mask: Path | str) -> np.ndarray:
    try:
        with Image.open(mask) as opened:
            return np.asarray(opened)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"mask {mask} cannot be read ({error}): expected a PNG with 0 outside of the class") from error
