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


class _Open(NamedTuple):
    """An open shard and, for each of its samples, webdataset's dict with (offset, bytes) in place of content."""

    file: FileIO
    samples: list[dict[str, Any]]


class Reader:
    """Samples of a split, in any order; to be closed, as by `with`.

    Args:
        directory: of the data set.
        shards: of the split.
    """

    def __init__(self, directory: Path, shards: Sequence[Shard]) -> None:
        self._directory = directory
        self._shards = shards
        self._open: OrderedDict[int, _Open] = OrderedDict()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            self._open.popitem()[1].file.close()

    def read(self, shard: int, index: int) -> dict[str, Any]:
        """Sample `index` of shard `shard`: a dict of bytes by suffix, with __key__ and __url__ (the shard's name).

        Raises:
            DataError: a shard that is missing, damaged, or holds fewer samples than dataset.json says.
        """
        if shard not in self._open:
            if len(self._open) == MAX_OPEN:
                self._open.popitem(last=False)[1].file.close()
            self._open[shard] = self._scan(shard)
        self._open.move_to_end(shard)
        file, samples = self._open[shard]
        return {
            name: value if name.startswith("__") else self._content(file, shard, index, *value)
            for name, value in samples[index].items()
        }

    def _scan(self, shard: int) -> _Open:
        entry = self._shards[shard]
        path = self._directory / entry.name
        samples: list[dict[str, Any]] = []
        try:
            # Without a buffer no more than the headers is read.
            file = path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing; restore it or build the data set again") from error
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                members = (
                    {"fname": member.name, "data": (member.offset_data, member.size), "__url__": entry.name}
                    for member in tar
                    if member.isreg()
                )
                for sample in group_by_keys(members):
                    samples.append(sample)
            if len(samples) < entry.samples:
                raise DataError(
                    f"{path} ends after {len(samples)} samples, dataset.json lists {entry.samples}; restore it or build it "
                    "again"
                )
        except BaseException as error:
            file.close()
            if isinstance(error, OSError | EOFError | tarfile.TarError) or type(error) is ValueError:
                raise DataError(
                    f"{path} cannot be read after {len(samples)} samples ({error}); restore it or build it again"
                ) from error
            raise
        return _Open(file, samples)

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
