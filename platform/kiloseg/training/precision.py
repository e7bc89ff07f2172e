"""Chooses the arithmetic of a run: the autocast of `trainer.precision` on a device."""

from __future__ import annotations

import torch

from kiloseg.config import Precision


def autocast_of(precision: Precision, device: torch.device) -> torch.autocast | None:
    """Returns the mixed precision of `trainer.precision` on a device; None for float32 throughout."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return (
        torch.autocast(device.type, torch.bfloat16) if precision == "bf16" or (precision == "auto" and able) else None
    )
