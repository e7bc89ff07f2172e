"""Reads rows of Parquet files into samples, a few at a time."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet

from common.images import is_image, stored, walk
from common.pairs import order, safe_key
from folders.lists import Ends
from folders.mask_files import MaskReader
from kiloseg.data.writing.build import ShardTask
from kiloseg.data.writing.current import working_on
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError

BATCH = 16
"""The number of rows that are in memory at a time."""
LONGEST_NAME = 60
"""The most bytes of a file's name in a key."""


class Row(NamedTuple):
    """Says where a sample is."""

    file: str
    group: int
    row: int
    """The number of the row in its group."""
    number: int
    """The number of the row in its file."""


def key_of(row: Row) -> str:
    """Returns the key of a row's sample: the name of its file, shortened by a digest if it is long, and its number."""
    name = safe_key(row.file.removesuffix(".parquet"))
    if len(name.encode()) > LONGEST_NAME:
        name = f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{order(row.file).hex()[:8]}"
    return f"{name}-{row.number:07d}"


def make_samples(
    task: ShardTask, *, root: Path, rows: Mapping[str, list[Row]], columns: tuple[str, str], reader: MaskReader
) -> Iterator[Sample]:
    """Yields the samples of a shard; raises DataError."""
    wanted = rows[task.split][task.start : task.stop]
    for (file, group), members in itertools.groupby(wanted, key=lambda row: (row.file, row.group)):
        by_row = {row.row: row for row in members}
        for number, image, mask in _read_group(root / file, group, columns, last=max(by_row)):
            if number not in by_row:
                continue
            row = by_row[number]
            where = f"{root / file}: row {row.number}"
            working_on(where)
            data = stored(_bytes(image, where, columns[0], root / file), where, exif=reader.exif)
            mask_HW, counts = _mask(mask, where, columns[1], root / file, reader)
            path = str(image.get("path") or "") if isinstance(image, dict) else ""
            meta = {"image": path, "file": file, "row": row.number}
            yield Sample(key=key_of(row), image=data, mask=mask_HW, meta=meta, counts=counts)


def _read_group(path: Path, group: int, columns: tuple[str, str], last: int) -> Iterator[tuple[int, Any, Any]]:
    """Yields the number, image and mask of each row of a group up to the last that is wanted."""
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            first = 0
            for batch in file.iter_batches(batch_size=BATCH, row_groups=[group], columns=list(columns)):
                images, masks = batch.column(columns[0]), batch.column(columns[1])
                for place in range(batch.num_rows):
                    yield first + place, images[place].as_py(), masks[place].as_py()
                first += batch.num_rows
                if first > last:
                    return
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DataError(f"{path} cannot be read ({error}): restore it") from error


def _bytes(value: Any, where: str, column: str, path: Path) -> bytes:
    """Returns the bytes of an image: embedded, or of the local file that the row names."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, dict):
        raise DataError(f"{where} has no image in column {column}: remove the row")
    if value.get("bytes"):
        return value["bytes"]
    root = path.parent.parent if path.parent.name == "data" else path.parent
    found = _images_below(root).find(str(value.get("path") or ""))  # it may be a path of another machine
    if found is not None:
        return (root / found).read_bytes()
    raise DataError(
        f"{where}, column {column}, holds no bytes, and its file {value.get('path')!r} is not below the folder of the Parquet "
        "file, or there are several of that name: expected embedded images, as push_to_hub writes them, or the files in the same "
        "folder"
    )


@functools.lru_cache(maxsize=4)
def _images_below(root: Path) -> Ends:
    return Ends(file for file in walk(root) if is_image(file))


def _mask(value: Any, where: str, column: str, path: Path, reader: MaskReader) -> tuple[np.ndarray, dict[str, int]]:
    if not isinstance(value, list):
        return reader.read(_bytes(value, where, column, path), f"{where}, column {column}")
    try:
        raw_HW = np.array(value)
    except ValueError:
        raw_HW = np.empty(0)
    if raw_HW.ndim != 2 or raw_HW.dtype.kind not in "iu":
        raise DataError(
            f"{where}, column {column}, holds lists that are not a mask: expected rows of equal length, of ids"
        )
    return reader.of_ids(raw_HW, where)
