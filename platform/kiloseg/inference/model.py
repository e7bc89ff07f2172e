"""A trained model: from an image of any size to labels with names."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kiloseg.config import Config
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.images import as_pixels
from kiloseg.inference.result import Result
from kiloseg.inference.tiling import predict_tiled
from kiloseg.models import Segmenter

TILE = 1024
"""Side in pixels of the pieces that large images are cut into; what is no larger is predicted whole."""
OVERLAP = 256
"""Pixels that neighbouring pieces share."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """A network with its classes; made by `kiloseg.load`."""

    segmenter: Segmenter
    """In evaluation mode, on its device."""
    config: Config
    """The run that it comes from."""
    classes: ModelClasses
    source: str
    """What it was loaded from."""
    autocast: torch.autocast | None = None
    """Mixed precision of the network."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.segmenter.parameters()).device

    def __call__(
        self, image: np.ndarray | Image.Image | Path | str, *, tile: int = TILE, overlap: int = OVERLAP
    ) -> Result:
        """Predicts the class of every pixel.

        Args:
            image: a file by path or URL, a Pillow image (turned as its EXIF says in both cases), or uint8 pixels (H, W, 3).
            tile: side of the pieces that a larger image is cut into, a multiple of 32; memory grows with it.
            overlap: pixels that neighbouring pieces share, over which their embeddings are blended; a multiple of 32
                below `tile`.

        Raises:
            ValueError: no image, one of no pixels or of other channels, or pieces that cannot be; the message names it.
        """
        pixels_HW3 = as_pixels(image)
        labels_HW, confidence_HW = predict_tiled(
            self.outputs, self.segmenter.head.predict_confidence, pixels_HW3, tile=tile, overlap=overlap
        )
        name = str(image) if isinstance(image, Path | str) else ""
        return Result(labels=labels_HW, confidence=confidence_HW, pixels=pixels_HW3, classes=self.classes, image=name)

    @torch.no_grad()
    def outputs(self, images_B3HW: Tensor) -> Tensor:
        """The network's outputs for uint8 images whose sides are multiples of 32."""
        with self.autocast or contextlib.nullcontext():
            outputs: Tensor = self.segmenter(images_B3HW.to(self.device, non_blocking=True))
        return outputs
