"""Checkpoints: one file a step, written whole or not at all, loaded without unpickling code."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

FORMAT = "kiloseg-checkpoint-1"
PATTERN = "step-*.pt"


def save_checkpoint(directory: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Writes `state` (tensors, numbers, strings and containers of them) as step-NNNNNNNN.pt and drops all but the `keep` newest.

    Raises:
        OSError: the file could not be written (a full disk, say); what was there before is untouched.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        partial.unlink(missing_ok=True)
        raise OSError(
            f"checkpoint {path} could not be written ({error}); make room and resume, older ones are kept"
        ) from error
    older = sorted(set(directory.glob(PATTERN)) - {path})
    for old in older[: max(len(older) - keep + 1, 0)]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state of a checkpoint file, on the CPU.

    Raises:
        ValueError: the file is damaged or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"checkpoint {path} does not exist") from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"checkpoint {path} is damaged ({type(error).__name__}); use the one before it") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of kiloseg (expected format {FORMAT!r})")
    return state


def load_newest(directory: Path) -> dict[str, Any] | None:
    """The newest checkpoint of a folder that is whole, or None; damaged ones are skipped with a warning."""
    for path in sorted(directory.glob(PATTERN), reverse=True):
        try:
            return load_checkpoint(path)
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
    return None
