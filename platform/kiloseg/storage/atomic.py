"""Writes files that appear under their name either complete or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PARTIAL = ".partial"
"""Suffix of a file that is not finished, so that files left by an interruption can be recognized."""


@contextlib.contextmanager
def whole_file(path: Path, *, shared: bool = False, durable: bool = False, buffering: int = -1) -> Iterator[IO[bytes]]:
    """Opens a file for writing that replaces any older file of its name when the block ends without an error.

    Args:
        path: the path of the file; its folder must exist.
        shared: whether several processes may write the file at the same time. Each then writes to its own partial file.
            Otherwise, a partial file that a killed process left is overwritten by the next one.
        durable: whether the bytes must be on the disk, and not only in the operating system, before the file is renamed.
        buffering: the same as for the built-in `open`.

    Raises:
        OSError: the file cannot be written; the partial file is removed, and an older file stays unchanged.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}" if shared else path.name + PARTIAL)
    try:
        with partial.open("wb", buffering=buffering) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_whole(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Writes a file that appears complete or not at all, and makes its folder. `shared` and errors: as of `whole_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, shared=shared) as file:
        file.write(content)
