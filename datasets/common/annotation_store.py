"""Stores annotations sorted by image in a Parquet file, from which each process reads only those of its shard.

COCO's json files hold annotations in no useful order, so reading those of one image means reading all. They are read once per
machine (or per cluster, if the file is on shared storage), written here in the order of the samples, and kept for the next build.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

from kiloseg.storage.atomic import whole_file
from kiloseg.storage.errors import DataError

GROUP = 250
"""The number of images in a row group, the smallest unit that is read: half a shard."""

SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("image", pyarrow.string()),
        ("height", pyarrow.int32()),
        ("width", pyarrow.int32()),
        ("class_ids", pyarrow.list_(pyarrow.int32())),
        ("segmentations", pyarrow.list_(pyarrow.binary())),
        ("digest", pyarrow.string()),
    ]
)
_RECIPE, _CLASSES = b"kiloseg.recipe", b"kiloseg.classes"


class AnnotatedImage(NamedTuple):
    """Holds an image with its regions, the first of which lies on top; `image` is a file, relative to the images' root."""

    key: str
    image: str
    height: int
    width: int
    class_ids: list[int]
    segmentations: list[bytes]
    """The polygons or RLE as json text, one per region."""


def write_store(path: Path, recipe: dict[str, Any], images: Iterable[AnnotatedImage], classes: list[str]) -> None:
    """Writes the file; it appears under its name only when it is complete.

    Args:
        path: the file; its folder is created.
        recipe: what it is made from, as JSON-able values; see `is_current`.
        images: the images, in the order of the samples.
        classes: one name per class id.

    Raises:
        DataError: the folder cannot be written.
    """
    schema = SCHEMA.with_metadata({_RECIPE: json.dumps(recipe), _CLASSES: json.dumps(classes)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(path, shared=True) as file,
            pyarrow.parquet.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            rows = iter(images)
            while group := [_row(image) for image in itertools.islice(rows, GROUP)]:
                writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error}): name a writable folder with --index") from error


def _row(image: AnnotatedImage) -> dict[str, Any]:
    digest = hashlib.sha256(repr(image).encode()).hexdigest()
    return {**image._asdict(), "digest": digest}


def is_current(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether the file exists, is complete, has today's columns, and was made from this recipe."""
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, pyarrow.ArrowInvalid):
        return False
    return schema.names == SCHEMA.names and (schema.metadata or {}).get(_RECIPE) == json.dumps(recipe).encode()


def read_classes(path: Path) -> list[str]:
    """Returns one name per class id."""
    return json.loads(pyarrow.parquet.read_schema(path).metadata[_CLASSES])


def num_images(path: Path) -> int:
    """Returns how many images the file holds."""
    return pyarrow.parquet.read_metadata(path).num_rows


def read_column(path: Path, column: str) -> list[Any]:
    """Returns one value per image, such as all keys. The column `digest` distinguishes images with other regions.

    Raises:
        DataError: the file is damaged.
    """
    with _reading(path):
        return pyarrow.parquet.read_table(path, columns=[column])[column].to_pylist()


def read_store(path: Path, start: int, stop: int) -> Iterator[AnnotatedImage]:
    """Yields images `start` to `stop` - 1; raises DataError if the file is damaged."""
    with _reading(path):
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
    with file:
        for number in range(start // GROUP, (stop - 1) // GROUP + 1):
            with _reading(path):
                rows = file.read_row_group(number, columns=list(AnnotatedImage._fields)).to_pylist()
            first = number * GROUP
            for row in rows[max(start - first, 0) : stop - first]:
                yield AnnotatedImage(**row)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pyarrow.ArrowInvalid) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is damaged ({reason}): delete it, and the same command makes it again") from error


def source(path: Path) -> list[str | int]:
    """Returns name, size and time of a file, which a store remembers to detect changes.

    Raises:
        DataError: There is no such file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected annotations in COCO's JSON format") from None
    return [path.name, status.st_size, status.st_mtime_ns]
