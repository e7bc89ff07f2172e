"""Holds what the Triton kernels of the losses share: exact products on tensor cores, class weights from cosines, and tuning.

Shapes: P pixels, C classes, N rows of a matrix, D embedding, W the power of two that holds D, at least 16.

Precision. A distance comes from 2 - 2 o.e, so an error of the cosine matters most where classes are close: at a distance of 0.05
and tau = 20, products in TF32 are wrong by 0.3 in a logit. So vectors and weights are split into three bfloat16 pieces, which
together hold the 24 bits of a float32, and a product is the sum of the six products of pieces that matter in float32. In the
interpreter, cosines have an error of 2.9e-8 (root mean square, D = 12; 4.9e-8 at D = 64); with torch in float32 it is 4.3e-8
(1.1e-7). Tensor cores multiply bfloat16 at twice the rate of TF32, so this costs what three products in TF32 would ("tf32x3",
which keeps two bits less and has to move the weights between threads); float32 arithmetic ("ieee") would leave the tensor cores
idle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

FAR = tl.constexpr(1e30)
"""This value stands for an infinite distance, without the NaN of inf - inf."""

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_BLOCK_N = 64

_PROGRAMS_PER_PROCESSOR = 4
"""The number of programs for the table's gradient per multiprocessor of the GPU. If there are too few classes for that, pixels are
divided too."""


def pieces(rows_ND: Tensor) -> Tensor:
    """Splits the rows into three bfloat16 matrices (3, N, W) that add up to them, with zeros beyond D.

    Raises:
        ValueError: the rows are not contiguous float32.
    """
    check(rows_ND=rows_ND)
    N, D = rows_ND.shape
    pieces_3NW = torch.empty(3, N, width(D), dtype=torch.bfloat16, device=rows_ND.device)
    _split_rows[(triton.cdiv(N, _BLOCK_N),)](rows_ND, pieces_3NW, N, D=D, W=width(D), BLOCK_N=_BLOCK_N)
    return pieces_3NW


def width(D: int) -> int:
    """Returns the W of a D; products on tensor cores need at least 16."""
    return max(triton.next_power_of_2(D), 16)


def check(**tensors: Tensor | None) -> None:
    """Raises ValueError if a tensor is not what a kernel reads: contiguous, float32 (ids int64), all on one device."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    device = next(iter(given.values())).device
    for name, tensor in given.items():
        expected = torch.int64 if name.startswith(("target", "ids")) else torch.float32
        if tensor.dtype != expected or not tensor.is_contiguous() or tensor.device != device:
            raise ValueError(
                f"{name} is {tensor.dtype} with strides {tensor.stride()} on {tensor.device}: "
                f"expected contiguous {expected} on {device}"
            )


def num_shares(C: int, most: int, device: torch.device) -> int:
    """Returns into how many shares, at most `most`, pixels are divided when programs hold 64 of C classes and walk over pixels."""
    # The interpreter runs one program after another; two shares for few classes are enough to exercise their sum.
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return min(triton.cdiv(_PROGRAMS_PER_PROCESSOR * processors, triton.cdiv(C, 64)), most)


@triton.jit
def split(values, ROUND: tl.constexpr):
    """Splits the values into three bfloat16 tensors that add up to them, by rounding (vectors) or truncation (weights, one
    operation less).

    It uses integers, because a GPU converts few bfloat16 values per clock back into the float32 that leaves the rest. Truncation
    makes pieces of one sign, so the products that are left out of a cosine would add up.
    """
    half: tl.constexpr = 0x8000 if ROUND else 0
    first = ((values.to(tl.int32, bitcast=True) + half) & -0x10000).to(tl.float32, bitcast=True)
    rest = values - first
    second = ((rest.to(tl.int32, bitcast=True) + half) & -0x10000).to(tl.float32, bitcast=True)
    return first.to(tl.bfloat16), second.to(tl.bfloat16), (rest - second).to(tl.bfloat16)


@triton.jit(do_not_specialize=["N"])
def _split_rows(rows_ptr, pieces_ptr, N, D: tl.constexpr, W: tl.constexpr, BLOCK_N: tl.constexpr):
    ids = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, W)
    inside = (ids < N)[:, None]
    values = tl.load(rows_ptr + ids[:, None] * D + dims[None, :], mask=inside & (dims < D)[None, :], other=0.0)
    first, second, third = split(values, ROUND=True)
    # This is 64-bit because a matrix may have more than 2^31 values.
    place = pieces_ptr + ids[:, None] * W + dims[None, :]
    step = N.to(tl.int64) * W
    tl.store(place, first, mask=inside)
    tl.store(place + step, second, mask=inside)
    tl.store(place + 2 * step, third, mask=inside)


@triton.jit
def load_pieces(pieces_ptr, ids, N, W: tl.constexpr):
    """Loads the three pieces of the rows `ids`, each (len(ids), W), with zeros for rows beyond N."""
    place = pieces_ptr + ids.to(tl.int64)[:, None] * W + tl.arange(0, W)[None, :]
    inside = (ids < N)[:, None]
    step = N.to(tl.int64) * W
    first = tl.load(place, mask=inside, other=0.0)
    second = tl.load(place + step, mask=inside, other=0.0)
    third = tl.load(place + 2 * step, mask=inside, other=0.0)
    return first, second, third


@triton.jit
def block_of_pixels(P, D: tl.constexpr, W: tl.constexpr, BLOCK_P: tl.constexpr):
    """Returns the pixels of this program, whether they exist, the places (BLOCK_P, W) of their vectors in a (P, D) matrix, and
    whether a place exists."""
    pixels = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = pixels < P
    dims = tl.arange(0, W)[None, :]
    return pixels, inside, pixels[:, None] * D + dims, inside[:, None] & (dims < D)


@triton.jit
def load_pixels(o_ptr, target_ptr, P, D: tl.constexpr, W: tl.constexpr, BLOCK_P: tl.constexpr):
    """Loads the three pieces of this program's pixels, each (BLOCK_P, W), and the row that each leaves out; -1 beyond P."""
    pixels, inside, place, filled = block_of_pixels(P, D, W, BLOCK_P)
    o1, o2, o3 = split(tl.load(o_ptr + place, mask=filled, other=0.0), ROUND=True)
    return o1, o2, o3, tl.load(target_ptr + pixels, mask=inside, other=-1).to(tl.int32)


@triton.jit
def product(a1, a2, a3, b1, b2, b3):
    """Computes (a1 + a2 + a3) @ (b1 + b2 + b3) without the three products that are below float32 precision, small ones first."""
    out = _dot(a2, b2, tl.zeros((a1.shape[0], b1.shape[1]), tl.float32))
    out = _dot(a3, b1, out)
    out = _dot(a1, b3, out)
    out = _dot(a2, b1, out)
    out = _dot(a1, b2, out)
    return _dot(a1, b1, out)


@triton.jit
def _dot(a, b, out):
    if _INTERPRETED:
        # The interpreter stores bfloat16 as integers and would multiply those.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), out, input_precision="ieee")
    else:
        return tl.dot(a, b, out)


@triton.jit
def logits_of(cosines, beyond, excluded, factor, least, COSINE: tl.constexpr):
    """Returns logits to base 2, at most 0, and the inverse of tau log2(e) times the distance (with COSINE: 1).

    `factor` is tau log2(e), and `least` is the smallest squared distance that is distinguished from 0. Classes `beyond` the last
    get a weight of 0 through the constant of a fused multiply-add, which is free; `excluded` pairs get it through a select.
    """
    if COSINE:
        logits = cosines * factor + tl.where(beyond, -FAR, -factor)
        inverse = 1.0
    else:
        scale = 2.0 * factor * factor
        squared = tl.maximum(cosines * -scale + tl.where(beyond, FAR, scale), least * factor * factor)
        # One special function gives the distance and its inverse; a GPU has fewest units for these functions.
        inverse = tl.rsqrt(squared)
        logits = -squared * inverse
    return tl.where(excluded, -FAR, logits), inverse


def tuned(configs: Sequence[tuple[int, int, int, int]], key: Sequence[str]) -> Callable[[Any], Any]:
    """Applies `triton.autotune` over (BLOCK_P, BLOCK_C, warps, stages), once for each value of `key`; the interpreter takes the
    first.

    For this, kernels have a `magnitude`, the number of bits of C, since the number of a batch's candidates may vary from step to
    step. Configurations are timed on the current call, five times, without the 256 MiB that Triton's own timing clears caches
    with: in a training step that would be the peak of memory.
    """
    choices = [
        triton.Config({"BLOCK_P": pixels, "BLOCK_C": classes}, num_warps=warps, num_stages=stages)
        for pixels, classes, warps, stages in configs
    ]
    choices = choices[:1] if triton.knobs.runtime.interpret else choices
    return triton.autotune(choices, key=list(key), do_bench=_quantiles_ms)


def _quantiles_ms(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
    call()
    spans = []
    for _ in range(5):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        spans.append(start.elapsed_time(stop))
    return torch.tensor(spans).quantile(torch.tensor(quantiles)).tolist()
