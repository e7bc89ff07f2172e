"""Turns any timm model into a backbone: feature maps at the strides that decoders expect, from images of any size.

segmentation-models-pytorch has an encoder of its own for timm models whose maps have strides of 2 or 4 to 32; this one serves all
others. Maps are resized to strides where a model has them not, as from vision transformers, whose maps all have one stride
(https://arxiv.org/abs/2203.16527 does so too). Models that take images of one size only are run on windows of that size.

Shapes: B batch, H W pixels, h w feature cells, N channels, n windows, w side of a window.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kiloseg.models.backbone import STRIDE, Backbone, examine

LEVELS = 5
"""Number of feature maps that decoders expect besides the image; level l has stride 2 ** l."""


class Pyramid(nn.Module):
    """A timm model as an encoder of segmentation-models-pytorch.

    Args:
        name: the timm model.
        pretrained: whether timm loads its weights.
        options: more arguments for `timm.create_model`.
        in_channels: channels of the image, 3.
        depth: number of feature maps, at most LEVELS.
        output_stride: the largest stride; deeper maps are resized to it.

    Raises:
        ValueError: the model cannot be a backbone.
    """

    def __init__(
        self,
        *,
        name: str,
        pretrained: bool,
        options: dict[str, Any],
        in_channels: int = 3,
        depth: int = LEVELS,
        output_stride: int = STRIDE,
    ) -> None:
        super().__init__()
        traits = examine(name)
        self.model = timm.create_model(
            name, features_only=True, in_chans=in_channels, pretrained=pretrained, **traits.options, **options
        )
        self._traits = traits
        self._channels_last = getattr(self.model, "output_fmt", None) == "NHWC"
        self.output_stride = min(output_stride, 2**depth)
        self._strides = [min(2**level, output_stride) for level in range(1, depth + 1)]
        self._sources = _sources(traits)[:depth]
        channels = self.model.feature_info.channels()
        self.out_channels = [in_channels, *(0 if source is None else channels[source] for source in self._sources)]

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Does nothing; segmentation-models-pytorch calls it with the channels that the encoder was made for."""

    def make_dilated(self, output_stride: int) -> None:
        """Does nothing; maps are resized to `output_stride`."""

    def forward(self, images_BNHW: Tensor) -> list[Tensor]:
        """Returns the images and, for every level, a map of (B, N, H / stride, W / stride). H and W are multiples of 32."""
        if self._traits.native is None:
            return [images_BNHW, *self._maps(images_BNHW, (images_BNHW.shape[2], images_BNHW.shape[3]))]
        return [images_BNHW, *self._maps_of_windows(images_BNHW)]

    def _maps(self, images_BNHW: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Returns maps of the levels, as of images of `size`."""
        found = self.model(images_BNHW)
        if self._channels_last:
            found = [each.permute(0, 3, 1, 2) for each in found]
        maps = []
        for source, stride in zip(self._sources, self._strides, strict=True):
            cells = size[0] // stride, size[1] // stride
            if source is None:  # decoders take maps without channels for levels that a network has not
                maps.append(images_BNHW.new_empty((len(images_BNHW), 0, *cells)))
                continue
            one = found[source]
            if tuple(one.shape[2:]) != cells:
                one = F.interpolate(one, size=cells, mode="bilinear", align_corners=False)
            maps.append(one.contiguous())
        return maps

    def _maps_of_windows(self, images_BNHW: Tensor) -> list[Tensor]:
        """Runs the network on windows that cover the images, and joins their maps; where windows overlap they are averaged."""
        side, native = self._traits.window, self._traits.native
        assert side is not None and native is not None
        B, _, H, W = images_BNHW.shape
        padded = F.pad(images_BNHW, (0, max(side - W, 0), 0, max(side - H, 0)))
        places = [(top, left) for top in _starts(padded.shape[2], side) for left in _starts(padded.shape[3], side)]
        windows = torch.cat([padded[:, :, top : top + side, left : left + side] for top, left in places])
        if native != side:
            windows = F.interpolate(windows, size=(native, native), mode="bilinear", align_corners=False)
        joined = []
        for maps, stride in zip(self._maps(windows, (side, side)), self._strides, strict=True):
            cells = side // stride
            whole = maps.new_zeros((B, maps.shape[1], padded.shape[2] // stride, padded.shape[3] // stride))
            counts = maps.new_zeros((1, 1, *whole.shape[2:]))
            for (top, left), part in zip(places, maps.split(B), strict=True):
                rows, columns = (slice(start // stride, start // stride + cells) for start in (top, left))
                whole[:, :, rows, columns] += part
                counts[:, :, rows, columns] += 1
            joined.append((whole / counts)[:, :, : H // stride, : W // stride])
        return joined


def register(name: str, *, pretrained: bool, options: dict[str, Any]) -> str:
    """Makes `Pyramid` of a timm model an encoder of segmentation-models-pytorch; returns the encoder's name."""
    encoder = f"kiloseg-{name}"
    smp.encoders.encoders[encoder] = {
        "encoder": Pyramid,
        "params": {"name": name, "pretrained": pretrained, "options": options},
        "pretrained_settings": {},
    }
    return encoder


def _sources(traits: Backbone) -> list[int | None]:
    """Returns for each level the index of the model's map that it is made of; None if it has no channels.

    The last maps are taken, in order. A model with fewer maps than levels gives its first one to several.
    """
    number = len(traits.reductions)
    if number >= LEVELS or 2 in traits.reductions:
        return [max(number - LEVELS + level, 0) for level in range(LEVELS)]
    return [None, *(max(number - LEVELS + level, 0) for level in range(1, LEVELS))]


def _starts(length: int, side: int) -> list[int]:
    """Returns where windows start along an axis, in multiples of 32 px, evenly spaced from one end to the other."""
    number = -(-length // side)
    if number == 1:
        return [0]
    return [round(index * (length - side) / (number - 1) / STRIDE) * STRIDE for index in range(number)]
