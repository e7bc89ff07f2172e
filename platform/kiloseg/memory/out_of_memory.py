"""Distinguishes a failed allocation from other errors."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error or its cause says that memory ran out, for CUDA, torch's CPU allocator or Python itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(cause, RuntimeError) and "can't allocate memory" in str(cause):
            return True
        cause = cause.__cause__
    return False
