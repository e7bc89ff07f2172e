"""Handles names of checkpoint files, in a separate module so that looking for checkpoints does not need torch."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path

from kiloseg.storage.filesystems import open_folder

PATTERN = "step-*.pt"


def checkpoint_name(step: int) -> str:
    """Returns the file name of the checkpoint of a step."""
    return f"step-{step:08d}.pt"


def checkpoint_names(entries: Iterable[str]) -> list[str]:
    """Returns the entries of a folder that are checkpoints, oldest first."""
    return sorted(fnmatch.filter(entries, PATTERN))


def newest_step(directory: Path | str) -> int:
    """Returns the step of the newest checkpoint in a folder, given by path or URL; 0 if there is none."""
    return max((int(name[5:13]) for name in checkpoint_names(open_folder(directory).entries())), default=0)
