"""Raw samples by position: the headers of a shard are read once, a sample's bytes only when it is asked for."""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from webdataset.tariterators import group_by_keys

from kiloseg.data.shards import DataError, Shard

MAX_OPEN = 64
"""Shards kept open; a shuffle buffer rarely spans more."""

MAX_KNOWN = 128
"""Shards whose headers are remembered, at some 0.5 kB a sample."""


class _Member(NamedTuple):
    """A file in a shard."""

    suffix: str
    offset: int
    size: int


class _Sample(NamedTuple):
    key: str
    members: tuple[_Member, ...]


class Reader:
    """Samples of a split, in any order, within `with`; what it knows of the shards outlives that.

    Args:
        directory: of the data set.
        shards: of the split.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard]) -> None:
        self._directory = directory
        self._shards = shards
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._known: OrderedDict[int, list[_Sample]] = OrderedDict()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def read(self, shard: int, index: int) -> dict[str, Any]:
        """Sample `index` of shard `shard`: a dict of bytes by suffix, with __key__ and __url__ (the shard's name).

        Raises:
            DataError: a shard that is missing, damaged, or holds fewer samples than dataset.json says.
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
            path = self._directory / self._shards[shard].name
            try:
                # Without a buffer no more than the headers is read.
                self._files[shard] = path.open("rb", buffering=0)
            except FileNotFoundError as error:
                raise DataError(f"{path} is missing; restore it or build the data set again") from error
        self._files.move_to_end(shard)
        return self._files[shard]

    def _scan(self, shard: int, file: FileIO) -> list[_Sample]:
        entry = self._shards[shard]
        path = self._directory / entry.name
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
                f"{path} cannot be read after {len(samples)} samples ({error}); restore it or build it again"
            ) from error
        if len(samples) < entry.samples:
            raise DataError(
                f"{path} ends after {len(samples)} samples, dataset.json lists {entry.samples}; restore it or build it again"
            )
        return samples

    def _content(self, file: FileIO, shard: int, index: int, offset: int, size: int) -> bytes:
        content = os.pread(file.fileno(), size, offset)
        while len(content) < size:  # a network file system may give less than it was asked for
            more = os.pread(file.fileno(), size - len(content), offset + len(content))
            if not more:
                path = self._directory / self._shards[shard].name
                raise DataError(
                    f"{path} cannot be read after {index} samples (it ends in the middle of one); restore it or build it "
                    "again"
                )
            content += more
        return content
