"""Names of checkpoint files. Processes that only look for checkpoints need no torch for it, so these are in a file of their own."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path

from kiloseg.storage.filesystems import open_folder

PATTERN = "step-*.pt"


def checkpoint_name(step: int) -> str:
    """Name of the file of a step's checkpoint."""
    return f"step-{step:08d}.pt"


def checkpoint_names(entries: Iterable[str]) -> list[str]:
    """Those entries of a folder that are checkpoints, oldest first."""
    return sorted(fnmatch.filter(entries, PATTERN))


def newest_step(directory: Path | str) -> int:
    """The step of the newest checkpoint in a folder, by path or URL; 0 where there is none."""
    return max((int(name[5:13]) for name in checkpoint_names(open_folder(directory).entries())), default=0)
