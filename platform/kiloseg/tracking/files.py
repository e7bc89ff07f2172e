"""Records a run's numbers in files next to its checkpoints, where there is no MLflow: as CSV, or for TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kiloseg.storage.atomic import write_whole

METRICS = "metrics.csv"
"""Name of the file with a row for each report and a column for each metric."""
EVENTS = "tensorboard"
"""Name of the folder that TensorBoard reads."""


class RunLog(Protocol):
    """What a single run writes its numbers to; `kiloseg.tracking.delivery.RunWriter` does so for MLflow."""

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Logs metrics at a step."""

    def log_table(self, columns: Mapping[str, list[Any]], file: str) -> None:
        """Logs a table."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags, which only MLflow has."""

    def end(self, status: str) -> None:
        """Ends the run as "FINISHED" or "FAILED"."""


class CsvLog:
    """Writes metrics to metrics.csv in a folder; a run that is resumed adds the steps that are not there yet.

    Values that a report has not are empty, and so are values that are not finite.

    Args:
        folder: the run's folder, which is created.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS
        self._rows: dict[int, dict[str, str]] = {}
        self._columns = ["step"]
        if self.path.is_file():
            text = self.path.read_text(encoding="utf-8")
            rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # a crash may have cut the last line short
            self._columns = list(rows.fieldnames or self._columns)
            self._rows = {int(row["step"]): row for row in rows}
        self._write_all()

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Adds a row, unless there is one of this step already."""
        if step in self._rows:
            return
        row = {"step": str(step)}
        row |= {name: repr(value) for name, value in metrics.items() if math.isfinite(value)}
        self._rows[step] = row
        new = [name for name in metrics if name not in self._columns]
        if new:
            self._columns += new
            self._write_all()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def log_table(self, columns: Mapping[str, list[Any]], file: str) -> None:
        """Writes the table as CSV, under the name of `file` with the suffix .csv; replaces an earlier one."""
        _write(
            self.path.parent / Path(file).with_suffix(".csv").name, list(columns), zip(*columns.values(), strict=True)
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Does nothing."""

    def end(self, status: str) -> None:
        """Does nothing, since every row is in the file."""

    def _write_all(self) -> None:
        rows = ([row.get(name, "") for name in self._columns] for row in self._rows.values())
        _write(self.path, self._columns, rows)


class TensorBoardLog(CsvLog):
    """Writes the same files as `CsvLog`, and scalars for TensorBoard.

    Raises:
        ValueError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ValueError("--tracking tensorboard needs tensorboardX: pip install 'kiloseg[tensorboard]'") from error
        super().__init__(folder)
        self.events = folder / EVENTS
        self._writer = SummaryWriter(str(self.events))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Adds a row and scalars, unless there is a row of this step already."""
        if step not in self._rows:
            for name, value in metrics.items():
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()
        super().log_metrics(metrics, step=step)

    def end(self, status: str) -> None:
        """Closes the file of scalars."""
        self._writer.close()


def _write(path: Path, columns: Sequence[str], rows: Any) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    write_whole(path, text.getvalue().encode())
