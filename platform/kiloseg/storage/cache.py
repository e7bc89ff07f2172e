"""Shards of a data set at a URL, copied to this machine to be read there.

All processes of a user share the copies, which are named by their digests, so that a shard is fetched once for all epochs,
trials and loader processes while it is among those used last. A copy may go at any time: who has opened it reads on.
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
"""Seconds before the second and the third attempt to fetch a shard."""

ABANDONED = 3600.0
"""Seconds after which what is not finished was left by a process that died."""


class DigestedFile(Protocol):
    """A file whose size and digest are known before it is fetched, such as a shard of a data set."""

    @property
    def name(self) -> str:
        """Name in its folder."""

    @property
    def bytes(self) -> int:
        """Size."""

    @property
    def sha256(self) -> str:
        """Digest of its content, in hexadecimal digits."""


class StoppedError(Exception):
    """Fetching was given up on purpose."""


class ShardCache:
    """Copies of shards of one data set.

    Args:
        folder: where the data set lies.
        limit: bytes that all copies may take, of other data sets too; what was used longest ago goes first.
    """

    def __init__(self, folder: RemoteFolder, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._directory = cache_folder()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends what other threads fetch, with StoppedError."""
        self._stopped.set()

    def open(self, shard: DigestedFile) -> FileIO:
        """The copy of a shard, whole and with its digest, for reading; fetched where there is none.

        Raises:
            ConnectionError: the filesystem does not answer.
            DataError: the shard is missing or not what dataset.json says, or there is no room for it here.
            StoppedError: `stop` was called meanwhile.
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
            mend = (
                "make room there, lower data.cache_gib"
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                else "mend it"
            )
            raise DataError(
                f"{self._directory} cannot hold copies of {self._folder.name} ({error}); {mend}, or name another folder by "
                "KILOSEG_CACHE"
            ) from error

    @contextlib.contextmanager
    def _lock(self, shard: DigestedFile) -> Iterator[None]:
        """One process at a time fetches a shard; the system ends the lock of one that dies."""
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
                        "data set again"
                    )
                partial.flush()
                # Opened before it takes its name: from then on another process may remove it to make room.
                return FileIO(partial.name)
        except FileNotFoundError as error:
            raise DataError(
                f"{self._folder.at(shard.name)} is missing; restore it or build the data set again"
            ) from error

    def _make_room(self, wanted: int) -> None:
        """Removes what was used longest ago until `wanted` bytes more fit."""
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
    """A whole copy, noted as used just now; None where there is none."""
    try:
        file = FileIO(path)
    except FileNotFoundError:
        return None
    if os.fstat(file.fileno()).st_size == shard.bytes:
        os.utime(file.fileno())
        return file
    file.close()  # cut short by something else
    return None
