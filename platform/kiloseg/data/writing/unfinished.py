"""Manages the files that a build keeps next to its shards while it runs, so that it can resume after an interruption.

    .partial/build.json             name of the data set, and every shard that this build or one before it may have left
    .partial/train-000000.parquet   a finished shard: its rows of the index, and in the metadata its record and digest

The folder is removed at the end of the build. A record is valid only for the recipe it was written for, and only while its
shard still has the recorded bytes.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from kiloseg.data.description import DESCRIPTION, Shard, read_info
from kiloseg.data.index import NAME as INDEX
from kiloseg.data.index import SCHEMA
from kiloseg.data.writing.report import Notes
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import WORK, Folder

_MARKER = f"{WORK}/build.json"
_REMEDY = "choose another --out, or empty this folder yourself"
_SHARD = re.compile(r"(?P<split>.+)-\d{6,}\.tar")


def claim(folder: Folder, name: str, shards: Iterable[str], *, rebuild: bool = False) -> None:
    """Starts or resumes a build of data set `name` in the folder, and removes shards that are not among `shards`.

    With `rebuild`, the data set may be damaged: its description may be unreadable, and shards that it does not list are removed.

    Raises:
        DataError: the build would mix with or replace something that is not an earlier build of this data set.
    """
    planned = set(shards)
    earlier = _earlier_shards(folder, name, rebuild=rebuild)
    # This comes first, so that files left by an interruption at any later point are recognized as files of this build.
    folder.write(_MARKER, json.dumps({"name": name, "shards": sorted(earlier | planned)}).encode())
    folder.remove(DESCRIPTION)
    for shard in sorted(earlier - planned):  # with fewer samples, old shards would remain that nothing lists
        folder.remove(shard)


def _earlier_shards(folder: Folder, name: str, *, rebuild: bool) -> set[str]:
    """Returns the shards that an earlier build of the same data set may have left in the folder."""
    if folder.is_file():
        raise DataError(f"{folder.name} is a file: expected a folder to write the data set into")
    entries = folder.entries()
    found: dict[str, set[str]] = {}
    if DESCRIPTION in entries:
        try:
            info = read_info(folder.location)
        except DataError as error:
            unlisted = {entry for entry in entries if _SHARD.fullmatch(entry)}
            if not (rebuild and INDEX in entries and unlisted):
                raise DataError(f"{folder.name} holds a data set that cannot be read ({error}); {_REMEDY}") from error
            found[name] = unlisted
        else:
            found[info.name] = {shard.name for listed in info.splits.values() for shard in listed}
            if rebuild:
                found[info.name] |= {
                    entry for entry in entries if (shard := _SHARD.fullmatch(entry)) and shard["split"] in info.splits
                }
    if WORK in entries and folder.entries(WORK) not in (
        [],
        [f"build.json{WORK}"],
    ):  # otherwise it was stopped at its start
        try:
            marker = json.loads(folder.read(_MARKER))
            found.setdefault(marker["name"], set()).update(marker["shards"])
        except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder.at(WORK)} holds no record of a build ({type(error).__name__}: {error}); {_REMEDY}"
            ) from error
    for other in found.keys() - {name}:
        raise DataError(
            f"{folder.name} holds the data set {other!r}: expected a new folder or an earlier build of {name!r}; {_REMEDY}"
        )
    foreign = [entry for entry in entries if entry != WORK]
    if foreign and not found:
        raise DataError(
            f"{folder.name} has no {DESCRIPTION} but holds {foreign[0]!r}: expected a new or empty folder, or an earlier "
            f"build of {name!r}; {_REMEDY}"
        )
    return found.get(name, set())


def write_record(folder: Folder, shard: Shard, rows: list[dict[str, Any]], notes: Notes, digest: str) -> None:
    """Records that a shard is finished. `rows` have all columns of the index; `digest` identifies what it was made from."""
    metadata = {
        "digest": digest,
        "shard": json.dumps(dataclasses.asdict(shard)),
        "notes": json.dumps({"counts": notes.counts, "images": notes.images}),
    }
    table = pyarrow.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, write_page_checksum=True)
    folder.write(_record(shard.name), sink.getvalue().to_pybytes())


def read_record(folder: Folder, name: str, digest: str) -> tuple[Shard, pyarrow.Table, Notes] | None:
    """Returns record, index rows and notes of a shard that was finished for the same digest; None if there is none."""
    try:
        content = pyarrow.BufferReader(folder.read(_record(name)))
        table = pyarrow.parquet.read_table(content, page_checksum_verification=True)
        metadata = table.schema.metadata
        if metadata[b"digest"].decode() != digest:
            return None
        notes = json.loads(metadata[b"notes"])
        return (
            Shard(**json.loads(metadata[b"shard"])),
            table.replace_schema_metadata(None),
            Notes(counts=Counter(notes["counts"]), images=notes["images"]),
        )
    except ConnectionError:
        raise
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
    ):  # missing, damaged, or from another version: the shard is built again
        return None


def is_intact(folder: Folder, shard: Shard) -> bool:
    """Returns whether the file has the recorded size and sha256."""
    if folder.sizes().get(shard.name) != shard.bytes:
        return False
    return folder.sha256(shard.name) == shard.sha256


def _record(name: str) -> str:
    return f"{WORK}/{Path(name).stem}.parquet"
