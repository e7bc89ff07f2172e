"""Averages the outputs of a network over scaled and mirrored views of an image.

The outputs of an embedding head are averaged as unit vectors. The product of a mean vector with a class is the mean of the
products, so this averages the scores of all classes and holds none of them.

Enlarged views tell more about an image than the cells of its plain view can hold, so their average has finer cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.inference.tiling import STRIDE

MAX_SCALE = 8
"""The largest factor of an image's sides."""


def check_scales(scales: Sequence[float]) -> None:
    """Raises ValueError if there are no factors, or if one is not above 0 or is larger than MAX_SCALE."""
    if not scales or not all(0 < scale <= MAX_SCALE for scale in scales):
        raise ValueError(f"scales = {tuple(scales)}: expected factors above 0 and at most {MAX_SCALE}")


def averaged_outputs(
    outputs_of: Callable[[Tensor], Tensor], *, scales: Sequence[float], flip: bool, unit_vectors: bool
) -> Callable[[Tensor], Tensor]:
    """Returns a function that works as `outputs_of` and averages over views.

    The outputs have 2, 4 or 8 times as many cells along a side as those of `outputs_of` if the largest factor is above 1, 2 or 4,
    but at most one for each pixel.

    Args:
        outputs_of: function from uint8 images (B, 3, H, W), H and W multiples of 32, to outputs (B, N, h, w).
        scales: factors of the sides; scaled sides are rounded to multiples of 32.
        flip: whether to add the mirror image of every view.
        unit_vectors: whether to normalize outputs over N before they are averaged.
    """
    if tuple(scales) == (1.0,) and not flip:
        return outputs_of

    finer = 2 ** max(math.ceil(math.log2(max(scales))), 0)

    def averaged(images: Tensor) -> Tensor:
        total: Tensor | None = None
        cells = None
        # The unscaled view decides how many cells the average has, whether or not it takes part.
        for scale in sorted(scales, key=lambda factor: factor != 1):
            size = tuple(max(round(side * scale / STRIDE), 1) * STRIDE for side in images.shape[2:])
            scaled = images if size == tuple(images.shape[2:]) else _resized(images, size)
            for mirrored in (False, True) if flip else (False,):
                outputs = outputs_of(scaled.flip(3) if mirrored else scaled).float()
                outputs = F.normalize(outputs, dim=1) if unit_vectors else outputs
                outputs = outputs.flip(3) if mirrored else outputs
                if cells is None:
                    stride = max(round(size[0] / outputs.shape[2]) // finer, 1)
                    cells = (images.shape[2] // stride, images.shape[3] // stride)
                if tuple(outputs.shape[2:]) != cells:
                    outputs = F.interpolate(outputs, size=cells, mode="bilinear", align_corners=False)
                total = outputs if total is None else total + outputs
        assert total is not None
        return total / (len(scales) * (1 + flip))

    return averaged


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    resized = F.interpolate(images.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
