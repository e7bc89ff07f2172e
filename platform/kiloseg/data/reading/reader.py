"""Reads raw samples by position. The headers of a shard are read once, the bytes of a sample only on request."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from webdataset.tariterators import group_by_keys

from kiloseg.data.description import AGAIN, Shard
from kiloseg.storage.cache import ShardCache, StoppedError
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import LocalFolder, open_folder

MAX_OPEN = 64
"""Number of shards that are kept open. A shuffle buffer rarely spans more."""

MAX_KNOWN = 128
"""Number of shards whose headers are kept in memory, at about 0.5 kB per sample."""


class _Member(NamedTuple):
    """Describes a file in a shard."""

    suffix: str
    offset: int
    size: int


class _Sample(NamedTuple):
    key: str
    members: tuple[_Member, ...]


class Reader:
    """Reads samples of a split in any order, inside a `with` block. The headers it has read stay in memory afterwards.

    Shards at a URL are copied to this machine (see `cache`). While one shard is read, the next one of `expect` is copied.

    Args:
        where: the folder of the data set, or its URL.
        shards: the shards of the split.
        cache_gib: the GiB that copies of shards at URLs may take.
    """

    def __init__(self, where: Path | str, shards: Sequence[Shard], *, cache_gib: float = 32.0) -> None:
        self._where = where
        self._shards = shards
        self._cache_bytes = int(cache_gib * 2**30)
        self._cache: ShardCache | None = None
        self._ahead: ThreadPoolExecutor | None = None
        self._next: dict[int, int] = {}
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._known: OrderedDict[int, list[_Sample]] = OrderedDict()

    def __enter__(self) -> Reader:
        self._folder = open_folder(self._where)
        if not isinstance(self._folder, LocalFolder):
            self._cache = ShardCache(self._folder, self._cache_bytes)
            self._ahead = ThreadPoolExecutor(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files; a second time does nothing."""
        if self._cache is not None and self._ahead is not None:
            self._cache.stop()
            self._ahead.shutdown(cancel_futures=True)
        self._cache = self._ahead = None
        self.__dict__.pop("_folder", None)  # another process opens its own
        while self._files:
            self._files.popitem()[1].close()

    def expect(self, shards: Iterable[int]) -> None:
        """Announces the shards that will be read, in the order of their first samples."""
        self._next = dict(pairwise(shards))

    def read(self, shard: int, index: int) -> dict[str, Any]:
        """Returns sample `index` of shard `shard`: a dict of bytes by suffix, with __key__ and __url__ (the shard's name).

        Raises:
            DataError: a shard is missing or damaged, or contains fewer samples than dataset.json says.
        """
        file = self._file(shard)
        if shard not in self._known:
            if len(self._known) == MAX_KNOWN:
                self._known.popitem(last=False)
            self._known[shard] = self._scan(shard, file)
        self._known.move_to_end(shard)
        key, members = self._known[shard][index]
        contents = {member.suffix: self._content(file, shard, index, member.offset, member.size) for member in members}
        return {"__key__": key, "__url__": self._shards[shard].name, **contents}

    def _file(self, shard: int) -> FileIO:
        if shard not in self._files:
            if len(self._files) == MAX_OPEN:
                self._files.popitem(last=False)[1].close()
            self._files[shard] = self._opened(shard)
        self._files.move_to_end(shard)
        return self._files[shard]

    def _opened(self, shard: int) -> FileIO:
        entry = self._shards[shard]
        if isinstance(self._folder, LocalFolder):
            try:
                # Without a buffer, only the headers are read.
                return (self._folder.path / entry.name).open("rb", buffering=0)
            except FileNotFoundError as error:
                raise DataError(f"{self._folder.at(entry.name)} is missing; restore it or {AGAIN}") from error
        assert self._cache is not None and self._ahead is not None
        file = self._cache.open(entry)
        if shard in self._next:
            self._ahead.submit(_fetch, self._cache, self._shards[self._next[shard]])
        return file

    def _scan(self, shard: int, file: FileIO) -> list[_Sample]:
        entry = self._shards[shard]
        path = self._folder.at(entry.name)
        samples: list[_Sample] = []
        try:
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                files = (
                    {"fname": member.name, "data": (member.offset_data, member.size), "__url__": entry.name}
                    for member in tar
                    if member.isreg()
                )
                for group in group_by_keys(files):
                    members = (_Member(suffix, *at) for suffix, at in group.items() if not suffix.startswith("__"))
                    samples.append(_Sample(group["__key__"], tuple(members)))
        except (OSError, EOFError, ValueError, tarfile.TarError) as error:
            raise DataError(
                f"{path} cannot be read after {len(samples)} samples ({error}); restore it or {AGAIN}"
            ) from error
        if len(samples) < entry.samples:
            raise DataError(
                f"{path} ends after {len(samples)} samples, dataset.json lists {entry.samples}; restore it or {AGAIN}"
            )
        return samples

    def _content(self, file: FileIO, shard: int, index: int, offset: int, size: int) -> bytes:
        content = os.pread(file.fileno(), size, offset)
        while len(content) < size:  # a network file system may return less than requested
            more = os.pread(file.fileno(), size - len(content), offset + len(content))
            if not more:
                path = self._folder.at(self._shards[shard].name)
                raise DataError(
                    f"{path} cannot be read after {index} samples (it ends in the middle of one); restore it or {AGAIN}"
                )
            content += more
        return content


def _fetch(cache: ShardCache, shard: Shard) -> None:
    """Fetches a shard before its reader needs it. Errors are ignored, since the reader meets and reports the same ones."""
    with contextlib.suppress(ConnectionError, DataError, StoppedError):
        cache.open(shard).close()
