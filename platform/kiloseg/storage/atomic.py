"""Files that appear under their name whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

PARTIAL = ".partial"
"""Suffix of a file that is not finished; with it a folder shows what an interruption left behind."""


@contextlib.contextmanager
def whole_file(path: Path, *, shared: bool = False, durable: bool = False, buffering: int = -1) -> Iterator[IO[bytes]]:
    """Opens a file for writing that takes its name, in place of an older one, when the block ends without an error.

    Args:
        path: the file; its folder is there.
        shared: several processes may write the file at once, so each writes to a partial file of its own. Otherwise what
            a killed process left behind is overwritten by the next one.
        durable: the bytes are on the disk, and not only with the operating system, before the file takes its name.
        buffering: as the built-in `open` takes it.

    Raises:
        OSError: the file cannot be written; the partial file is removed, and an older file stays as it is.
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


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears under its name whole or not at all; makes its folder; raises as `whole_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(content)
