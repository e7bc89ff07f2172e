"""Reads label tables, kiloseg/data/labels/*.csv, and maps the ids in an archive's masks to the ids of a data set."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np

import kiloseg.data
from kiloseg.data.codec import IGNORE_ID
from kiloseg.storage.errors import DataError

LABELS = Path(kiloseg.data.__file__).parent / "labels"
"""The tables are part of the package, so an installed kiloseg has them too."""

MAX_RAW_ID = 65535
UNKNOWN = -1


def read_table(name: str) -> list[dict[str, str]]:
    """Returns the rows of kiloseg/data/labels/NAME.csv: column name to text, empty where the table has no entry."""
    with (LABELS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def class_names(rows: list[dict[str, str]], column: str = "class_id") -> list[str]:
    """Returns one name per class, in the order of the ids in `column`; rows without an id there are not classes.

    Raises:
        ValueError: The ids are not 0, 1, 2, ... once each.
    """
    names = {int(row[column]): row["name"] for row in rows if row[column]}
    if sorted(names) != list(range(len([row for row in rows if row[column]]))):
        raise ValueError(f"column {column} of a label table: expected each id from 0 on once, got {sorted(names)}")
    return [names[class_id] for class_id in sorted(names)]


def lookup(class_ids: Mapping[int, int]) -> np.ndarray:
    """Maps raw ids to class ids (or IGNORE_ID) as an int32 array of 65,536 entries, with UNKNOWN for ids that mean nothing.

    Masks are looked up once in a single table. Replacing ids one after another would chain the replacements if a new id is also an
    old one.
    """
    table = np.full(MAX_RAW_ID + 1, UNKNOWN, np.int32)
    for raw_id, class_id in class_ids.items():
        table[raw_id] = class_id
    return table


def to_class_ids(raw_HW: np.ndarray, table: np.ndarray, path: Path | str, remedy: str) -> np.ndarray:
    """Converts a mask of raw ids to uint16 class ids.

    Args:
        raw_HW: integers of any type, or floats without fractions (as MATLAB stores numbers by default).
        table: the table made by `lookup`.
        path: the mask's file, for messages.
        remedy: what the user can do about an id that the table lacks.

    Raises:
        DataError: An id means nothing in this archive.
    """
    if raw_HW.ndim != 2 or raw_HW.dtype.kind not in "iufb":
        raise DataError(f"{path}: mask has shape {raw_HW.shape} and type {raw_HW.dtype}: expected ids of shape (H, W)")
    raw = raw_HW if raw_HW.dtype in (np.uint8, np.uint16) else raw_HW.astype(np.int64)
    if raw_HW.dtype.kind == "f" and not np.array_equal(raw, raw_HW):
        raise DataError(f"{path}: mask has fractions: expected whole ids. {remedy}")
    if raw.size and (raw.min() < 0 or raw.max() > MAX_RAW_ID):
        raise DataError(f"{path}: mask has ids {raw.min()} to {raw.max()}: expected 0 to {MAX_RAW_ID}. {remedy}")
    mask = table[raw]
    if mask.size and mask.min() == UNKNOWN:
        unknown = np.unique(raw[mask == UNKNOWN])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        known = np.flatnonzero(table != UNKNOWN)
        raise DataError(
            f"{path}: mask has id {', '.join(map(str, unknown[:5]))}{more}: expected one of the {len(known)} known ids "
            f"{known.min()} to {known.max()}. {remedy}"
        )
    return mask.astype(np.uint16)


def ignore_or(class_id: str) -> int:
    """Returns a class id of a table as a number, or IGNORE_ID if it is empty."""
    return int(class_id) if class_id else IGNORE_ID
