"""Convolves each channel by itself on a CPU, with gradients that take no longer than those of dense convolutions.

oneDNN has fast gradients of such a convolution's weights for kernels of up to 3 x 3 only. For wider ones it works as if each
channel were a group of 16, in buffers of tens of MB: 20 to 29 ms for inputs of 17 x 1152 x 4 x 4 and a kernel of 5 x 5 within a
step of training, where the kernel here takes 0.5 ms (torch 2.14, a core of a Zen 5). With strides, its gradients of inputs in
bfloat16 take up to 30 times as long as in float32.

Shapes: B images, C channels, H W rows and columns of the inputs, h w of the outputs, K the side of the kernel.
"""

from __future__ import annotations

import ctypes
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kiloseg.ops import cpu

ONEDNN_SIDE = 3
"""The largest side of a kernel whose weights have a fast gradient in oneDNN."""

MAX_SIDE = 13
"""The largest side of a kernel: torch 2.14's own convolution in bfloat16 never returns for 15 x 15 and more (CPU with AVX-512)."""

WIDENED = 2**20
"""The values of inputs that are in float32 at a time: as many as the caches of a core hold."""


def slow_gradient(side: int, stride: int) -> bool:
    """Returns whether torch's own gradient is slow on a CPU, and that of `depthwise_conv2d` is not."""
    return side > ONEDNN_SIDE or stride > 1


def depthwise_conv2d(
    inputs_BCHW: Tensor,
    weights_C1KK: Tensor,
    bias_C: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Does what `torch.nn.functional.conv2d` does with as many groups as channels: (B, C, h, w).

    The gradient can be taken once. Under autocast, inputs and weights are cast as for `conv2d`.

    Args:
        inputs_BCHW: float32 or bfloat16 inputs on a CPU.
        weights_C1KK: the weights, of the same type; K is at most MAX_SIDE.
        bias_C: the bias, if there is one.
        stride: the stride of both axes.
        padding: the zeros on each side of both axes.
        dilation: the distance between the taps of the kernel.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        inputs_BCHW, weights_C1KK = inputs_BCHW.to(dtype), weights_C1KK.to(dtype)
        bias_C = None if bias_C is None else bias_C.to(dtype)
    outputs: Tensor = _Depthwise.apply(inputs_BCHW, weights_C1KK, bias_C, stride, padding, dilation)
    return outputs


class _Depthwise(torch.autograd.Function):
    """Convolves as torch does; its gradients come from the kernel and, for strides, from float32."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weights: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int
    ) -> Tensor:
        ctx.save_for_backward(inputs, weights)
        ctx.geometry = (stride, padding, dilation)
        return F.conv2d(inputs, weights, bias, stride, padding, dilation, len(weights))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (outputs,) = gradients
        inputs, weights = ctx.saved_tensors
        outputs = outputs.contiguous(memory_format=torch.channels_last)
        of_inputs = of_weights = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = _of_inputs(outputs, inputs, weights, ctx.geometry)
        if ctx.needs_input_grad[1]:
            if weights.shape[2] > ONEDNN_SIDE:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                of_weights = _of_weights_by_kernel(inputs, outputs, weights, *ctx.geometry)
            else:
                of_weights = _by_torch(outputs, inputs, weights, ctx.geometry, "weights")
        if ctx.needs_input_grad[2]:
            of_bias = outputs.sum((0, 2, 3))
        return of_inputs, of_weights, of_bias, None, None, None


def _of_inputs(
    outputs_BChw: Tensor, inputs_BCHW: Tensor, weights_C1KK: Tensor, geometry: tuple[int, int, int]
) -> Tensor:
    """Returns the gradient of the inputs; with strides, from a few images in float32 at a time."""
    if geometry[0] == 1 or inputs_BCHW.dtype == torch.float32:
        return _by_torch(outputs_BChw, inputs_BCHW, weights_C1KK, geometry, "inputs")
    weights = weights_C1KK.float()
    found_BCHW = torch.empty_like(inputs_BCHW, memory_format=torch.channels_last)
    images = max(WIDENED // inputs_BCHW[0].numel(), 1)
    for found, outputs in zip(found_BCHW.split(images), outputs_BChw.split(images), strict=True):
        # Only the shape and the layout of the inputs are used.
        inputs = torch.empty_like(found, dtype=torch.float32, memory_format=torch.channels_last)
        found.copy_(_by_torch(outputs.float(), inputs, weights, geometry, "inputs"))
    return found_BCHW


def _by_torch(
    outputs: Tensor,
    inputs: Tensor,
    weights: Tensor,
    geometry: tuple[int, int, int],
    wanted: Literal["inputs", "weights"],
) -> Tensor:
    stride, padding, dilation = ([value, value] for value in geometry)
    found = torch.ops.aten.convolution_backward(
        *(outputs, inputs, weights, None, stride, padding, dilation, False, [0, 0], len(weights)),
        [wanted == "inputs", wanted == "weights", False],
    )
    gradient: Tensor = found[0] if wanted == "inputs" else found[1]
    return gradient


class _Gradient(ctypes.Structure):
    """Mirrors `struct depthwise` of ops/cpu/depthwise.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("B", "C", "H", "W", "h", "w", "K", "stride", "padding", "dilation")),
        *((name, ctypes.c_int64) for name in ("threads", "bfloat16")),
        *((name, ctypes.c_void_p) for name in ("inputs", "gradient", "weights")),
    )


def _of_weights_by_kernel(
    inputs_BCHW: Tensor, outputs_BChw: Tensor, weights_C1KK: Tensor, stride: int, padding: int, dilation: int
) -> Tensor:
    """Returns the gradient of the weights from channels-last tensors."""
    B, C, H, W = inputs_BCHW.shape
    h, w = outputs_BChw.shape[2:]
    K = weights_C1KK.shape[2]
    found_C1KK = torch.empty((C, 1, K, K), device=weights_C1KK.device)
    if cpu.holds_data(inputs_BCHW):
        kernels = cpu.library()
        assert kernels is not None, "depthwise_conv2d is only for machines with compiled kernels"
        gradient = _Gradient(
            *(B, C, H, W, h, w, K, stride, padding, dilation, torch.get_num_threads()),
            bfloat16=inputs_BCHW.dtype == torch.bfloat16,
            inputs=cpu.pointer("inputs", inputs_BCHW.permute(0, 2, 3, 1), inputs_BCHW.dtype),
            gradient=cpu.pointer("gradient", outputs_BChw.permute(0, 2, 3, 1), inputs_BCHW.dtype),
            weights=cpu.pointer("weights", found_C1KK),
        )
        kernels.kiloseg_depthwise(ctypes.byref(gradient))
    return found_C1KK.to(weights_C1KK.dtype)
