"""Where Ray keeps what a study is resumed from, so that a full disk costs the newest state and not the study."""

from __future__ import annotations

import contextlib
import json
import pickletools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem
from ray.train._internal import storage as ray_storage

from kiloseg.storage.atomic import whole_file
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import WORK, open_folder

PATIENCE_S = 60.0
"""That a study waits for a copy of its state: a storage that is away ends no study."""
STATE = "experiment_state-"
PICKLED = ("search_gen_state-", "searcher-state-", "basic-variant-state-", "callback-states-")
"""Beginnings of the names of Ray's files of a study's state; after them comes when the process began that wrote them, in UTC."""


def storage_filesystem(storage: str) -> FileSystem | None:
    """The filesystem for Ray's `storage_filesystem`, with a `storage_path` of this machine.

    Ray writes a study's state over the state before it, and a write that breaks off, as on a full disk, leaves neither. Here
    a file takes its place when it is whole. None for URLs, which Ray reads itself; an upload to an object store is whole or not
    there.
    """
    return None if "://" in storage else PyFileSystem(_WholeFiles(LocalFileSystem()))


@contextlib.contextmanager
def still_while_copied() -> Iterator[None]:
    """While entered a study that begins waits for the copy that Ray makes of its state.

    Ray copies beside the study, which may write the next state over the one that is being read. On a storage that is slower than
    that a file would be half of one and half of the other, from which nothing can be resumed.
    """
    before = ray_storage._FilesystemSyncer
    ray_storage._FilesystemSyncer = _WaitedFor
    try:
        yield
    finally:
        ray_storage._FilesystemSyncer = before


class _WaitedFor(ray_storage._FilesystemSyncer):
    def sync_up(self, *arguments: Any, **keywords: Any) -> bool:
        """Starts a copy, and waits for it; what went wrong Ray tells when it starts the next."""
        started: bool = super().sync_up(*arguments, **keywords)
        if started:
            self._sync_process._process.join(PATIENCE_S)
        return started


def check_state(study: str) -> None:
    """Refuses a state that Ray would take for none at all, and begin the study anew with a single trial.

    Args:
        study: the folder that Ray keeps the study in, by path or URL.

    Raises:
        DataError: there is no state yet; the newest cannot be read, and names the file; or it is of a time that is still to come
            for this machine, so that the state that is about to be written would not be the newest.
    """
    folder = open_folder(study)
    entries = [name for name in folder.entries() if not name.endswith(WORK)]  # of a death while one was written
    states = [name for name in entries if name.startswith(STATE) and name.endswith(".json")]
    if not states:
        raise DataError(
            f"{folder.name} has no state to go on from: its study ended before Ray wrote one down, right after its start; "
            "start it anew, without --resume"
        )
    for prefix in (STATE, *PICKLED):
        names = [name for name in entries if name.startswith(prefix)]
        try:
            for name in names[-1:]:
                _check_whole(folder.read(name), pickled=prefix != STATE)
        except ValueError as error:
            mend = "move it away to go on from the state before it" if len(names) > 1 else "a new study has to be begun"
            raise DataError(
                f"{folder.at(names[-1])} is damaged ({error}); its trials are still there, but {mend}"
            ) from error
    newest = states[-1].removeprefix(STATE).removesuffix(".json")
    now = time.strftime("%Y-%m-%d_%H-%M-%S", time.gmtime())
    if newest >= now:
        raise DataError(
            f"{folder.at(states[-1])} is of {newest} (UTC), which on this machine is still to come ({now}): what is about to be "
            "written would be taken for older; set its clock, or wait"
        )


def _check_whole(content: bytes, *, pickled: bool) -> None:
    """Raises ValueError for what is cut short; nothing of it is run."""
    if not pickled:
        json.loads(content)
        return
    for _ in pickletools.genops(content):
        pass


class _WholeFiles(FSSpecHandler):
    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        """A file that is not there until it is closed."""
        return PythonFile(_WholeFile(Path(path)), mode="w")


class _WholeFile:
    """What pyarrow writes to."""

    def __init__(self, path: Path) -> None:
        # Without a buffer a full disk shows when something is written; what happens at the end pyarrow tells nobody.
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
