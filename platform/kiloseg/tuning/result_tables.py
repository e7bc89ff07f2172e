"""Reads and writes the tables of experiments: rows are added as runs end, and a study may replace its own earlier rows."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from kiloseg.config import Data

if TYPE_CHECKING:  # they come with kiloseg[search], which experiments without a search do not need
    import pandas

    from kiloseg.tuning.study import StudyResult


def require_path(data: Data) -> str:
    """Returns the path of the data set that was given.

    Raises:
        ValueError: None was given.
    """
    if not data.path:
        raise ValueError(
            "--data.path is missing: give the folder of a data set, such as one that datasets/emoji.py built"
        )
    return data.path


def _require_columns(path: Path, found: Sequence[str], columns: Sequence[str]) -> None:
    if list(found) != list(columns):
        raise ValueError(
            f"--results {path} has columns {', '.join(found)}: expected {', '.join(columns)}. Name another file, or move this one "
            "away"
        )


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Returns the rows of a table, or none if it does not exist yet.

    Raises:
        ValueError: It has other columns.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        _require_columns(path, reader.fieldnames or [], columns)
        return list(reader)


def append_row(path: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Adds a row to a table, which is created if it does not exist yet; values of other columns are dropped.

    Raises:
        ValueError: The table has other columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    begins = not path.exists()
    if not begins:
        with path.open(newline="") as file:
            _require_columns(path, next(csv.reader(file), []), columns)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        if begins:
            writer.writeheader()
        writer.writerow({name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()})


def read_table(path: Path, columns: Sequence[str]) -> pandas.DataFrame:
    """Returns the table in the file of --results, which need not exist yet.

    Raises:
        ValueError: It has other columns.
    """
    import pandas

    if not path.exists():
        return pandas.DataFrame(columns=list(columns))
    rows = pandas.read_csv(path)
    _require_columns(path, list(rows.columns), columns)
    return rows


def in_order(table: pandas.DataFrame, key: Sequence[str], **orders: Sequence[str]) -> pandas.DataFrame:
    """Sorts the rows by the columns `key`; a column in `orders` is sorted as listed there, other values last."""

    def ranks(column: pandas.Series) -> pandas.Series:
        if column.name not in orders:
            return column
        names = list(dict.fromkeys([*orders[str(column.name)], *column]))
        return column.map(names.index)

    return table.sort_values(list(key), ignore_index=True, key=ranks)


def merge(table: pandas.DataFrame, path: Path, key: Sequence[str], **orders: Sequence[str]) -> pandas.DataFrame:
    """Adds rows to the table in a file, replacing those of an equal `key`; writes all or nothing. Returns all its rows."""
    import pandas

    before = read_table(path, list(table.columns))
    if len(before):
        before = before[~before.set_index(list(key)).index.isin(table.set_index(list(key)).index)]
        table = in_order(pandas.concat([before, table]) if len(before) else table, key, **orders)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    table.to_csv(part, index=False, float_format="%.6g")
    part.replace(path)
    return table


def log_figures(figures: Mapping[str, Figure], result: StudyResult) -> None:
    """Writes each figure as PNG and SVG to the study's folder, which exists, and to its run in MLflow."""
    for name, figure in figures.items():
        for kind in ("png", "svg"):
            path = result.folder / f"{name}.{kind}"
            figure.savefig(path, dpi=130)
            result.run.log_file(path)
