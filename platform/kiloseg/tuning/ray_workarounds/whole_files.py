"""Writes the files of a study's state atomically, so that a full disk costs only the newest state and not the study.

Seen on Ray 2.60: Tune overwrites the previous state of a study with the new one. If a write fails, as on a full disk, both are
lost, and the study cannot be resumed.

It can go when tests/tuning/test_study_state.py::test_full_disk_leaves_what_was_there and test_faults.py::test_full_disk pass
with `storage_filesystem` returning None.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from kiloseg.storage.atomic import whole_file


def storage_filesystem(storage: str) -> FileSystem | None:
    """Returns the filesystem for Ray's `storage_filesystem` if the storage is a folder on this machine.

    Returns None for URLs, which Ray opens itself: an upload to an object store is complete or has no effect.
    """
    return None if "://" in storage else PyFileSystem(WholeFiles(LocalFileSystem()))


class WholeFiles(FSSpecHandler):
    """This machine's filesystem, but a new file gets its name only when it is complete."""

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        """Opens a file for writing that appears under its name only when it is closed."""
        return PythonFile(_WholeFile(Path(path)), mode="w")


class _WholeFile:
    """The file object that pyarrow writes to."""

    def __init__(self, path: Path) -> None:
        # Unbuffered, so that a full disk causes an error in `write`: pyarrow ignores errors in `close`.
        self._writing = whole_file(path, buffering=0)
        self._file = self._writing.__enter__()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:  # pyarrow does not close a file after a failed write
            self._writing.__exit__(type(error), error, error.__traceback__)
            raise
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self._writing.__exit__(None, None, None)
