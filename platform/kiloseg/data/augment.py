"""Random scale, crop, flip and colour of a training sample, by torchvision."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from kiloseg.config import Data


class Augment:
    """Image and labels to a square training crop.

    The window that becomes the crop is cut out before it is resized, which costs the area of the crop and not of the
    image. Where the window leaves the image, labels are -1: padding is never trained on.
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        strength = data.jitter
        self.after_crop = v2.Compose(
            [
                v2.RandomHorizontalFlip(data.flip),
                v2.ColorJitter(brightness=strength, contrast=strength, saturation=strength)
                if strength
                else v2.Identity(),
            ]
        )

    def __call__(self, image_HW3: np.ndarray, labels_HW: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        """uint8 (H, W, 3) and int32 (H, W) to uint8 (3, crop, crop) and int64 (crop, crop).

        `seed` alone decides what happens, whatever process this runs in.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._crop(image_HW3, labels_HW)

    def _crop(self, image_HW3: np.ndarray, labels_HW: np.ndarray) -> tuple[Tensor, Tensor]:
        crop = self.data.crop
        low, high = math.log(self.data.scale_min), math.log(self.data.scale_max)
        scale = math.exp(low + (high - low) * torch.rand(()).item())
        window = max(round(crop / scale), 1)
        height, width = labels_HW.shape
        top, left = _offset(height, window), _offset(width, window)
        rows = slice(max(top, 0), min(top + window, height))
        columns = slice(max(left, 0), min(left + window, width))
        image = torch.from_numpy(np.ascontiguousarray(image_HW3[rows, columns].transpose(2, 0, 1)))
        labels = torch.from_numpy(np.ascontiguousarray(labels_HW[rows, columns]))
        if labels.shape != (window, window):
            before = rows.start - top, columns.start - left
            padding = [before[1], before[0], window - labels.shape[1] - before[1], window - labels.shape[0] - before[0]]
            image = functional.pad(image, padding, fill=0)
            labels = functional.pad(tv_tensors.Mask(labels), padding, fill=-1).as_subclass(Tensor)
        if window != crop:
            image = functional.resize(image, [crop, crop], InterpolationMode.BILINEAR, antialias=True)
            # Not NEAREST, which takes the corner of a cell instead of its centre and so shifts labels against the image.
            labels = functional.resize(labels[None], [crop, crop], InterpolationMode.NEAREST_EXACT)[0]
        flipped, mask = self.after_crop(tv_tensors.Image(image), tv_tensors.Mask(labels.long()))
        return flipped.as_subclass(Tensor), mask.as_subclass(Tensor)


def _offset(length: int, window: int) -> int:
    """A random start of the window in an image side; negative where the window is longer, so that it hangs over."""
    slack = length - window
    start = int(torch.randint(abs(slack) + 1, ()))
    return start if slack >= 0 else -start
