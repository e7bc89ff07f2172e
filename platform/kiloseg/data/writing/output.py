"""Holds the arguments that all builders share."""

from __future__ import annotations

import dataclasses
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiloseg.storage.credentials import shown
from kiloseg.storage.filesystems import LocalFolder, open_folder

UNRECORDED = ("out", "processes", "address", "rebuild", "strict")
"""Fields of `Output` that do not affect the bytes of the data set."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Holds the arguments that all builders share: where to write the data set and with which resources."""

    out: str
    """Folder for dataset.json, index.parquet and the shards, or its URL on any filesystem that pyarrow knows (s3://...,
    gs://...): new, empty, or an earlier build of this data set."""
    shard_size: int = 500
    """Maximum number of samples in a shard."""
    processes: int = os.cpu_count() or 1
    """Number of processes that work at the same time on this machine. With 1, the main process does everything."""
    address: str | None = None
    """Ray cluster that builds the shards instead, such as auto or HOST:PORT. All its machines must have access to `out` and
    to the files that are read."""
    rebuild: bool = False
    """Build a complete data set with the same settings again, for example if `python -m kiloseg.data.verify` finds damage."""
    strict: bool = False
    """End with an error if the report has a warning, such as a class that is in val but not in train."""

    def __post_init__(self) -> None:
        if not self.out:
            raise ValueError("out = '': expected a folder or a URL")
        for name in ("shard_size", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least 1")

    def settings(self) -> dict[str, Any]:
        """Returns all fields that affect the bytes, for a recipe, so not where and how fast to write. Paths become text."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
            if name not in UNRECORDED
        }

    def command(self, script: str) -> str:
        """Returns the command line of `script` that gives these settings, whatever folder a shell is in: paths are absolute."""
        folder = open_folder(self.out)
        words = ["python", script, "--out", folder.location if isinstance(folder, LocalFolder) else shown(self.out)]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in UNRECORDED or value == field.default:
                continue
            if isinstance(value, Path):
                value = value.absolute()
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            elif isinstance(value, tuple):
                words += [f"--{flag}", *map(str, value)]
            else:
                words += [str(value)] if field.name == "path" else [f"--{flag}", str(value)]
        return shlex.join(words)
