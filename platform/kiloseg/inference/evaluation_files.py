"""Holds the result of an evaluation and writes its files: tables, figures and a report."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.counting import Sample
from kiloseg.metrics import Histogram
from kiloseg.storage.atomic import write_whole

METRICS = "metrics.json"
"""The file that is written last."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The metrics of a model on the validation split of a data set."""

    metrics: dict[str, Any]
    """Content of metrics.json. Metrics are fractions from 0 to 1, or None if they are undefined; see `evaluate`."""
    table: list[dict[str, Any]]
    """One row per class with id, name, iou, boundary_iou, pixels, predicted_pixels and train_samples."""
    groups: list[dict[str, Any]]
    """One row per group with level, name, number of classes and iou; empty if the classes have no groups."""
    reliability: np.ndarray
    """Pixels, share of correct ones and mean confidence in bins of confidence: float64 (3, bins)."""
    shown: list[Sample]
    """The first images with labels and predictions, large ones thinned out."""
    classes: ModelClasses
    familiarity: Histogram
    """Familiarity of the pixels of the model's classes but the background (`kiloseg.models.heads.Candidates`)."""

    def save(self, folder: Path | str, *, overwrite: bool = False) -> list[Path]:
        """Writes tables as csv and parquet, figures/*.png, report.html and, last, metrics.json.

        Returns:
            The paths of the files.

        Raises:
            ValueError: the files already exist and `overwrite` is not set.
        """
        from kiloseg.inference.figures import evaluation_figures
        from kiloseg.inference.report import report_page

        folder = Path(folder)
        check_free(folder, overwrite)
        contents: dict[str, bytes] = {}
        for name, rows in (("classes", self.table), ("groups", self.groups)):
            if rows:
                contents |= {f"{name}.csv": _csv(rows), f"{name}.parquet": _parquet(rows)}
        figures = evaluation_figures(self)
        contents |= {f"figures/{name}.png": picture for name, picture in figures.items()}
        contents["report.html"] = report_page(self, figures).encode()
        contents[METRICS] = (json.dumps(self.metrics, indent=1, ensure_ascii=False) + "\n").encode()
        for name, content in contents.items():
            write_whole(folder / name, content)
        return [folder / name for name in contents]


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises ValueError if the folder holds an evaluation that must not be overwritten."""
    if not overwrite and (folder / METRICS).exists():
        raise ValueError(f"{folder / METRICS} exists; give --overwrite, or another --out")


def _csv(rows: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), content)
    return content.getvalue()
