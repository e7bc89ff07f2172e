"""Telling an allocation that failed from other errors."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it came from, says that memory ran out: CUDA's, torch's CPU allocator's or Python's own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(cause, RuntimeError) and "can't allocate memory" in str(cause):
            return True
        cause = cause.__cause__
    return False
