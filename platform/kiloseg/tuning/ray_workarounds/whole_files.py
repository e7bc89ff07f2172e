"""Files of a study's state are whole or not there, so that a full disk costs the newest state and not the study.

Seen on Ray 2.60: Tune writes a study's state over the state before it. A write that breaks off, as on a full disk, leaves
neither, and the study cannot be resumed.

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
    """The filesystem for Ray's `storage_filesystem`, with a `storage_path` of this machine.

    None for URLs, which Ray reads itself: an upload to an object store is whole or not there.
    """
    return None if "://" in storage else PyFileSystem(WholeFiles(LocalFileSystem()))


class WholeFiles(FSSpecHandler):
    """A filesystem of this machine on which a file takes its name when it is whole."""

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        """Opens a file that is not there under its name until it is closed."""
        return PythonFile(_WholeFile(Path(path)), mode="w")


class _WholeFile:
    """The file object that pyarrow writes to."""

    def __init__(self, path: Path) -> None:
        # Unbuffered, so that a full disk shows in `write`: pyarrow tells nobody of an error in `close`.
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
        except OSError as error:  # pyarrow does not close what it could not write
            self._writing.__exit__(type(error), error, error.__traceback__)
            raise
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self._writing.__exit__(None, None, None)
