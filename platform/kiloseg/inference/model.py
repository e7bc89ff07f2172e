"""Defines a trained model, which labels every pixel of an image of any size with a named class."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kiloseg.config import Config
from kiloseg.inference.answering import Answer, Decide, answering
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.images import as_pixels
from kiloseg.inference.result import Result
from kiloseg.inference.tiling import predict_tiled
from kiloseg.inference.views import averaged_outputs, check_scales
from kiloseg.models import Segmenter

TILE = 1024
"""Side in pixels of the tiles that large images are cut into; smaller images are predicted whole."""
OVERLAP = 256
"""Number of pixels by which neighboring tiles overlap."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """A network with its classes; `kiloseg.load` creates it."""

    segmenter: Segmenter
    """The network, in evaluation mode and on its device."""
    config: Config
    """Settings of the run that trained the model."""
    classes: ModelClasses
    source: str
    """The source from which the model was loaded, as `kiloseg.load` accepts it."""
    autocast: torch.autocast | None = None
    """Context in which the network runs with mixed precision; None: full precision."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the image's sides, above 0 and at most 8, whose outputs are averaged; see `kiloseg.inference.views`. Each takes
    the network's time once more, in proportion to its square."""
    flip: bool = False
    """Whether the outputs of the mirror image are averaged too."""

    def __post_init__(self) -> None:
        check_scales(self.scales)

    @property
    def device(self) -> torch.device:
        """Device of the network's parameters."""
        return next(self.segmenter.parameters()).device

    def __call__(
        self,
        image: np.ndarray | Image.Image | Path | str,
        *,
        tile: int = TILE,
        overlap: int = OVERLAP,
        answer: Answer | None = None,
    ) -> Result:
        """Predicts the class of every pixel.

        Args:
            image: a file by path or URL, a Pillow image (both are rotated as their EXIF says), or uint8 pixels (H, W, 3).
            tile: side in pixels of the tiles that a larger image is cut into, a multiple of 32; memory grows with it.
            overlap: pixels by which neighboring tiles overlap and over which their embeddings are blended; a multiple of 32
                below `tile`.
            answer: whether groups of classes or "unknown" may be answered; the result then has them as further classes.

        Raises:
            ValueError: this is no image, it has no pixels or other channels, `tile` and `overlap` are impossible, or the
                classes have no groups; the message says which.
        """
        name = str(image) if isinstance(image, Path | str) else ""
        return self.result(as_pixels(image), name, tile=tile, overlap=overlap, answer=answer)

    def result(
        self,
        pixels_HW3: np.ndarray,
        name: str,
        *,
        outputs_1Nhw: Tensor | None = None,
        tile: int = TILE,
        overlap: int = OVERLAP,
        answer: Answer | None = None,
    ) -> Result:
        """Predicts the class of every pixel of a decoded image, as calling the model does.

        Args:
            pixels_HW3: uint8 pixels of the image.
            name: the name of the image in the result.
            outputs_1Nhw: the network's outputs for the padded image if they are known already; it fits into one tile.
            tile, overlap, answer: as calling the model takes them.
        """
        head, classes = self.segmenter.head, self.classes
        decide: Decide = head.predict_confidence
        if answer is not None:
            decide, classes = answering(head, classes, answer)

        def outputs_of(images_B3HW: Tensor) -> Tensor:
            return self.outputs(images_B3HW) if outputs_1Nhw is None else outputs_1Nhw

        labels_HW, confidence_HW = predict_tiled(outputs_of, decide, pixels_HW3, tile=tile, overlap=overlap)
        return Result(labels=labels_HW, confidence=confidence_HW, pixels=pixels_HW3, classes=classes, image=name)

    @torch.no_grad()
    def outputs(self, images_B3HW: Tensor) -> Tensor:
        """Returns the network's outputs for uint8 images whose sides are multiples of 32, averaged over `scales` and `flip`."""
        outputs_of = averaged_outputs(
            self._plain_outputs,
            scales=self.scales,
            flip=self.flip,
            unit_vectors=self.segmenter.head.table is not None,
        )
        return outputs_of(images_B3HW)

    def _plain_outputs(self, images_B3HW: Tensor) -> Tensor:
        with self.autocast or contextlib.nullcontext():
            outputs: Tensor = self.segmenter(images_B3HW.to(self.device, non_blocking=True))
        return outputs
