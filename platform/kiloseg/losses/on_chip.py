"""Whether the losses may keep their score tiles on chip, in Triton kernels; without, they go through memory in tiles."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

BAND_BYTES = 16 * 2**20
"""Size aimed at for one P x D matrix of a band on a GPU: 349,525 pixels at D = 12, a whole image of 512 x 512, and 65,536 at
D = 64. Programs of 64 pixels then number a thousand or more, several for each of an H100's 132 multiprocessors, and a
band's dozens of small operations on such matrices take longer than their launches. About ten live at once, which is
2.6 % of what a ResNet-50 DeepLabV3+ takes at batch 10 and crop 512."""


def available(device: torch.device) -> bool:
    """Whether the kernels can run there: a GPU of compute capability 8.0 or more (bfloat16 on tensor cores), and Triton.

    KILOSEG_TRITON=0 in the environment says no, for comparison. TRITON_INTERPRET=1, which has to be set before Triton is
    imported, makes Triton interpret its kernels, so that they run, slowly, on CPU tensors.
    """
    if os.environ.get("KILOSEG_TRITON") == "0" or not _installed():
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return device.type == "cpu"
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
