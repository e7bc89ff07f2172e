"""Gives the depthwise convolutions of a network on a CPU fast gradients, for which torch alone takes very long there."""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn

from kiloseg.models.forward import Forward
from kiloseg.ops.cpu import library
from kiloseg.ops.depthwise import MAX_SIDE, depthwise_conv2d, slow_gradient


class Depthwise(Forward):
    """Runs a depthwise convolution by `kiloseg.ops.depthwise` where gradients are wanted, and as it is elsewhere."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Returns the convolution of some inputs."""
        convolution = cast(nn.Conv2d, self.module())
        weights, stride, dilation = convolution.weight, convolution.stride[0], convolution.dilation[0]
        learns = torch.is_grad_enabled() and (inputs.requires_grad or weights.requires_grad)
        if not learns or inputs.dtype not in (torch.float32, torch.bfloat16):
            outputs: Tensor = type(convolution).forward(convolution, inputs)
            return outputs
        if isinstance(convolution, Conv2dSame):
            inputs = pad_same(inputs, weights.shape[2:], convolution.stride, convolution.dilation)
            padding = 0
        else:
            padding = cast(int, convolution.padding[0])
        return depthwise_conv2d(inputs, weights, convolution.bias, stride=stride, padding=padding, dilation=dilation)


def quicken_depthwise(network: nn.Module, *, by_kernel: bool) -> None:
    """Gives the depthwise convolutions of a network on a CPU fast gradients, or leaves its encoder in float32 under autocast.

    In bfloat16, torch's own gradients of these convolutions take up to 30 times as long as in float32 (oneDNN in torch 2.14), which
    is more than the dense convolutions gain.
    """
    encoder: Any = network.encoder
    within_encoder = set(encoder.modules())
    slow_encoder = False
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or module.groups == 1:
            continue
        if by_kernel and _is_plain_depthwise(module) and library() is not None:
            if slow_gradient(module.kernel_size[0], module.stride[0]):
                module.forward = Depthwise(module)  # type: ignore[method-assign, assignment]
        elif module in within_encoder:
            slow_encoder = True
    if slow_encoder:
        encoder.forward = InFloat32(encoder)


def _is_plain_depthwise(convolution: nn.Conv2d) -> bool:
    """Returns whether `depthwise_conv2d` can do what this module does."""
    same = isinstance(convolution, Conv2dSame)
    return (
        (same or type(convolution).forward is nn.Conv2d.forward)
        and convolution.groups == convolution.in_channels == convolution.out_channels
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
        and convolution.kernel_size[0] <= MAX_SIDE
        and all(
            len(set(pair)) == 1
            for pair in (convolution.kernel_size, convolution.stride, convolution.dilation, convolution.padding)
        )
    )


class InFloat32(Forward):
    """Runs an encoder in float32, also under autocast."""

    def __call__(self, images: Tensor) -> Any:
        """Returns the encoder's maps of some images, in float32."""
        encoder: Any = self.module()
        with torch.autocast("cpu", enabled=False):
            return type(encoder).forward(encoder, images)
