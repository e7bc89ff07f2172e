"""Scales, crops, flips and recolors a training sample at random."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kiloseg.config import Data
from kiloseg.data.reading.color import change_colors, draw_jitter


class NoSuchPixelError(ValueError):
    """Raised if a crop should be placed over a label that the image does not have."""

    def __init__(self, label: int) -> None:
        super().__init__(f"no pixel has label {label}")
        self.label = label


class _Span(NamedTuple):
    """Maps pixels `start` to `start + length` - 1 of an image side to `size` pixels of the crop, starting at `place`."""

    start: int
    length: int
    place: int
    size: int

    @property
    def source(self) -> slice:
        return slice(self.start, self.start + self.length)

    @property
    def target(self) -> slice:
        return slice(self.place, self.place + self.size)

    def nearest(self) -> np.ndarray:
        """Returns the image pixel under the center of each crop pixel: int64 of shape (size,)."""
        centers = (2 * np.arange(self.size) + 1) * self.length // (2 * self.size)
        return self.start + centers


class Augment:
    """Turns an image and its labels into a square training crop.

    The window that becomes the crop is cut out before it is resized, so the cost depends on the area of the crop and not of
    the image. Where the window extends past the image, the crop is black and labels are -1: padding is never trained on.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def __call__(
        self,
        image_HW3: np.ndarray,
        labels_HW: np.ndarray,
        seed: int,
        *,
        over: int | None = None,
        out: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Turns uint8 (H, W, 3) and signed integers (H, W) into uint8 (3, crop, crop) and int64 (crop, crop).

        Args:
            image_HW3: the image.
            labels_HW: its labels.
            seed: decides all random choices, independently of the process this runs in.
            over: a label that occurs in the image; the random window then contains a pixel of it, drawn at random.
            out: tensors to write the crop to, with labels of any integer type; the default makes new ones.

        Raises:
            NoSuchPixelError: `over` does not occur in the image.
        """
        crop = self.data.crop
        rng = random.Random(seed)
        low, high = math.log(self.data.scale_min), math.log(self.data.scale_max)
        window = max(round(crop / math.exp(low + (high - low) * rng.random())), 1)
        row, column = (None, None) if over is None else _pixel_of(labels_HW, over, rng)
        rows = _span(labels_HW.shape[0], window, crop, row, rng)
        columns = _span(labels_HW.shape[1], window, crop, column, rng)
        mirrored = rng.random() < self.data.flip

        if out is None:
            out = (
                torch.empty((crop, crop, 3), dtype=torch.uint8).permute(2, 0, 1),
                torch.empty((crop, crop), dtype=torch.int64),
            )
        image_out, labels_out = out
        if rows.size < crop or columns.size < crop:
            image_out.zero_()
            labels_out.fill_(-1)
        if mirrored:
            columns = columns._replace(place=crop - columns.place - columns.size)
        target = rows.target, columns.target
        image_3HW = self._resized(image_HW3[rows.source, columns.source], (rows.size, columns.size), rng)
        image_out[:, *target].copy_(image_3HW.flip(-1) if mirrored else image_3HW)
        from_columns = columns.nearest()[::-1] if mirrored else columns.nearest()
        # The side that shrinks most, or grows least, goes first.
        picked = (
            labels_HW[rows.source].take(from_columns, axis=1).take(rows.nearest() - rows.start, axis=0)
            if rows.length < rows.size
            else labels_HW.take(rows.nearest(), axis=0).take(from_columns, axis=1)
        )
        labels_out[target].copy_(torch.from_numpy(picked))
        return out

    def _resized(self, image_HW3: np.ndarray, size: tuple[int, int], rng: random.Random) -> Tensor:
        """Returns the image at this size, uint8 (3, H, W). Colors are changed before or after, where there are fewer pixels."""
        jitter = draw_jitter(self.data.jitter, rng) if self.data.jitter else None
        grows = math.prod(size) >= math.prod(image_HW3.shape[:2])
        if jitter is not None and grows:
            image_HW3 = change_colors(image_HW3, jitter)
        if size != image_HW3.shape[:2]:
            image_HW3 = _resize(image_HW3, size)
        if jitter is not None and not grows:
            image_HW3 = change_colors(image_HW3, jitter)
        return torch.from_numpy(image_HW3).permute(2, 0, 1)


def _resize(image_HW3: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes exactly as `interpolate(mode="bilinear", antialias=True)` does, bit for bit, in half the time.

    That function returns channels outermost and spends most of its time on moving them there.
    """
    resized = torch.empty((1, *size, 3), dtype=torch.uint8)
    image_13HW = torch.from_numpy(np.ascontiguousarray(image_HW3))[None].permute(0, 3, 1, 2)
    torch.ops.aten._upsample_bilinear2d_aa.out(image_13HW, size, False, None, None, out=resized.permute(0, 3, 1, 2))
    return resized[0].numpy()


def _pixel_of(labels_HW: np.ndarray, label: int, rng: random.Random) -> tuple[int, int]:
    """Returns the row and column of a random pixel with this label."""
    found = np.flatnonzero(labels_HW == label)
    if not len(found):
        raise NoSuchPixelError(label)
    return divmod(int(found[rng.randrange(len(found))]), labels_HW.shape[1])


def _span(length: int, window: int, crop: int, over: int | None, rng: random.Random) -> _Span:
    """Places the window at random in an image side of `length` pixels, or the whole side at random in a longer window."""
    if window > length:
        size = min(max(round(length * crop / window), 1), crop)
        return _Span(0, length, rng.randrange(crop - size + 1), size)
    first, last = 0, length - window
    if over is not None:
        first, last = max(first, over - window + 1), min(last, over)
    return _Span(rng.randint(first, last), window, 0, crop)
