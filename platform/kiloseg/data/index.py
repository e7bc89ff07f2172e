"""index.parquet: a row per sample, so that counting classes never opens a shard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from kiloseg.data.shards import DataError

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


def write_index(directory: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes index.parquet with the columns of SCHEMA."""
    partial = directory / (NAME + ".partial")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=SCHEMA), partial)
    partial.replace(directory / NAME)


def read_index(directory: Path | str, split: str | None = None) -> pyarrow.Table:
    """The index, or the rows of one split.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = Path(directory) / NAME
    filters = None if split is None else [("split", "=", split)]
    try:
        return pyarrow.parquet.read_table(path, schema=SCHEMA, filters=filters)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; restore it or build the data set again") from error
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}); restore it or build the data set again") from error


def class_samples(table: pyarrow.Table, num_classes: int) -> np.ndarray:
    """In how many samples each class occurs: int64 of shape (C,)."""
    ids = table["class_ids"].combine_chunks().flatten().to_numpy()
    return np.bincount(ids, minlength=num_classes)
