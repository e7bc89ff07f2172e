"""Reads and writes index.parquet, which has one row per sample, so that counting classes never opens a shard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from kiloseg.data.description import AGAIN
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import Folder, open_folder

NAME = "index.parquet"

SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        ("split", pyarrow.string()),
        ("shard", pyarrow.string()),
        ("height", pyarrow.int32()),
        ("width", pyarrow.int32()),
        ("class_ids", pyarrow.list_(pyarrow.int32())),
        ("class_pixels", pyarrow.list_(pyarrow.int64())),
    ]
)


def write_index(directory: Path | str, rows: Iterable[dict[str, Any]]) -> None:
    """Writes index.parquet with the columns of SCHEMA, from rows that are all in memory."""
    write_tables(open_folder(directory), [pyarrow.Table.from_pylist(list(rows), schema=SCHEMA)])


def write_tables(folder: Folder, tables: Iterable[pyarrow.Table]) -> None:
    """Writes index.parquet from tables of SCHEMA. Only one table is in memory at a time; each becomes a row group."""
    with folder.scratch() as scratch:
        with pyarrow.parquet.ParquetWriter(scratch / NAME, SCHEMA) as writer:
            for table in tables:
                writer.write_table(table)
        folder.put(scratch / NAME, NAME)


def read_index(
    directory: Path | str, split: str | None = None, *, shard: str | None = None, columns: list[str] | None = None
) -> pyarrow.Table:
    """Reads the index, or only the rows of one split or one shard, with all columns or only some.

    Raises:
        DataError: the index is missing or damaged.
    """
    folder = open_folder(directory)
    wanted = [(name, "=", value) for name, value in (("split", split), ("shard", shard)) if value is not None]
    try:
        table = pyarrow.parquet.read_table(
            folder.random_access(NAME), schema=SCHEMA, filters=wanted or None, columns=columns
        )
        empty = [name for name in table.column_names if table[name].null_count]
        if empty:
            raise ValueError(f"no values in column {', '.join(empty)}")
        return table
    except FileNotFoundError as error:
        raise DataError(f"{folder.at(NAME)} does not exist; {AGAIN}") from error
    except ConnectionError:
        raise
    except (NotImplementedError, OSError, ValueError) as error:
        raise DataError(f"{folder.at(NAME)} is damaged ({error}); {AGAIN}") from error


def class_samples(table: pyarrow.Table, num_classes: int) -> np.ndarray:
    """Counts the samples in which each class occurs: int64 of shape (C,)."""
    ids = table["class_ids"].combine_chunks().flatten().to_numpy()
    return np.bincount(ids, minlength=num_classes)
