"""Lists the architectures of networks: those of segmentation-models-pytorch, and an FPN with coarser outputs.

Shapes: B batch, N channels, h w cells of a feature map.
"""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.decoders.fpn.decoder import SegmentationBlock
from torch import Tensor, nn


class FPN8(smp.FPN):
    """An FPN (https://arxiv.org/abs/1901.02446) whose outputs have stride 8 instead of 4.

    The one convolution of the level of stride 4 has more multiplications than those of all other levels together. With
    `model.input_scale = 2` this network has the cells of an FPN on images of the original size.

    Args:
        kwargs: as for `segmentation_models_pytorch.FPN`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(upsampling=8, **kwargs)
        self.decoder: Any = _Decoder8(self.decoder)
        self.initialize()


class _Decoder8(nn.Module):
    """The decoder of an FPN without its finest level.

    Args:
        whole: the decoder, whose other levels become those of this one.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.p5, self.p4, self.p3 = whole.p5, whole.p4, whole.p3
        convolution = whole.seg_blocks[-1].block[0].block[0]
        # Each level is upsampled once less than in the whole decoder.
        self.seg_blocks = nn.ModuleList(
            SegmentationBlock(convolution.in_channels, convolution.out_channels, upsamplings)
            for upsamplings in (2, 1, 0)
        )
        self.dropout = whole.dropout

    def forward(self, features_BNhw: list[Tensor]) -> Tensor:
        """Returns the sum of the levels at stride 8: (B, N, H / 8, W / 8).

        Args:
            features_BNhw: maps of the encoder, from fine to coarse; the last three, of strides 8, 16 and 32, are used.
        """
        fine, middle, coarse = features_BNhw[-3:]
        p5 = self.p5(coarse)
        p4 = self.p4(p5, middle)
        p3 = self.p3(p4, fine)
        levels = [block(level) for block, level in zip(self.seg_blocks, (p5, p4, p3), strict=True)]
        summed: Tensor = self.dropout(levels[0] + levels[1] + levels[2])
        return summed


ARCHITECTURES: dict[str, type[nn.Module]] = {**smp.MODEL_ARCHITECTURES_MAPPING, "fpn8": FPN8}
"""The networks by the names that `model.arch` may have."""
