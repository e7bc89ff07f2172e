"""Copies shards of a data set at a URL to this machine, where they are read.

All processes of a user share the copies, which are named by their digests, so that a shard is fetched once for all epochs,
trials and loader processes while it is among those used last. A copy may be removed at any time: a process that has opened
it can still read it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Protocol

from filelock import FileLock

from kiloseg.storage.atomic import PARTIAL, whole_file
from kiloseg.storage.cache_folder import cache_folder
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import RemoteFolder

WAITS = 1.0, 5.0
"""Seconds to wait before the second and the third attempt to fetch a shard."""

ABANDONED = 3600.0
"""Age in seconds from which an unfinished file counts as left by a process that died."""


class DigestedFile(Protocol):
    """Describes a file whose size and digest are known before it is fetched, such as a shard of a data set."""

    @property
    def name(self) -> str:
        """The name of the file in its folder."""

    @property
    def bytes(self) -> int:
        """The size of the file in bytes."""

    @property
    def sha256(self) -> str:
        """The sha256 digest of its content in hexadecimal digits."""


class StoppedError(Exception):
    """Raised if fetching was stopped on purpose."""


class ShardCache:
    """Manages the copies of the shards of one data set.

    Args:
        folder: the folder of the data set.
        limit: the bytes that all copies may take, including those of other data sets. The least recently used copy is
            removed first.
    """

    def __init__(self, folder: RemoteFolder, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._directory = cache_folder()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stops other threads that are fetching; they raise StoppedError."""
        self._stopped.set()

    def open(self, shard: DigestedFile) -> FileIO:
        """Opens the complete copy of a shard for reading. Fetches the shard and checks its digest if there is no copy.

        Raises:
            ConnectionError: the filesystem does not answer.
            DataError: the shard is missing or differs from dataset.json, or there is no room for it here.
            StoppedError: `stop` was called in the meantime.
        """
        path = self._directory / f"{shard.sha256}.tar"
        try:
            found = _opened(path, shard)
            if found is not None:
                return found
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock(shard):
                return _opened(path, shard) or self._fetched(path, shard)
        except ConnectionError:
            raise
        except OSError as error:
            remedy = (
                "free some space there, lower data.cache_gib"
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                else "correct the cause"
            )
            raise DataError(
                f"{self._directory} cannot hold copies of {self._folder.name} ({error}); {remedy}, or set another folder with "
                "KILOSEG_CACHE"
            ) from error

    @contextlib.contextmanager
    def _lock(self, shard: DigestedFile) -> Iterator[None]:
        """Lets only one process at a time fetch a shard. The system releases the lock of a process that dies."""
        with FileLock(self._directory / f"{shard.sha256[:2]}.lock"):
            yield

    def _fetched(self, path: Path, shard: DigestedFile) -> FileIO:
        for wait in (*WAITS, None):
            try:
                return self._fetch(path, shard)
            except ConnectionError:
                if wait is None:
                    raise
                if self._stopped.wait(wait):
                    raise StoppedError from None
        raise AssertionError

    def _fetch(self, path: Path, shard: DigestedFile) -> FileIO:
        self._make_room(shard.bytes)
        try:
            with whole_file(path, shared=True) as partial:
                digest = hashlib.sha256()
                for block in self._folder.blocks(shard.name):
                    if self._stopped.is_set():
                        raise StoppedError
                    digest.update(block)
                    partial.write(block)
                if digest.hexdigest() != shard.sha256:
                    size = f"{partial.tell()} bytes, expected {shard.bytes}"
                    fault = size if partial.tell() != shard.bytes else f"sha256 {digest.hexdigest()}"
                    raise DataError(
                        f"{self._folder.at(shard.name)} is not what dataset.json lists ({fault}); restore it or build the "
                        "data set again with --rebuild (the command is in dataset.json)"
                    )
                partial.flush()
                # Opened before it is renamed, since from then on another process may remove it to make room.
                return FileIO(partial.name)
        except FileNotFoundError as error:
            raise DataError(
                f"{self._folder.at(shard.name)} is missing; restore it or build the data set again with --rebuild (the "
                "command is in dataset.json)"
            ) from error

    def _make_room(self, wanted: int) -> None:
        """Removes the least recently used copies until `wanted` more bytes fit."""
        now = time.time()
        copies = []
        for path in (*self._directory.glob("*.tar"), *self._directory.glob(f"*{PARTIAL}")):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                copies.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in copies) + wanted
        for used, size, path in sorted(copies):
            abandoned = path.suffix == PARTIAL and now - used > ABANDONED
            if abandoned or (total > self._limit and path.suffix == ".tar"):
                path.unlink(missing_ok=True)
                total -= size


def _opened(path: Path, shard: DigestedFile) -> FileIO | None:
    """Opens a complete copy and marks it as just used; None if there is none."""
    try:
        file = FileIO(path)
    except FileNotFoundError:
        return None
    if os.fstat(file.fileno()).st_size == shard.bytes:
        os.utime(file.fileno())
        return file
    file.close()  # something else truncated it
    return None
