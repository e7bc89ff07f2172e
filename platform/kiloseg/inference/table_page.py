"""Makes the page of a class table: all classes as points, colored by group or IoU, with their nearest neighbors. It works offline.

Shapes: C classes, D embedding.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.editing import class_table, neighbors
from kiloseg.inference.groups import levels_of
from kiloseg.inference.loading import classes_of
from kiloseg.inference.report import fill_page

NEIGHBORS = 8
"""Nearest classes that are listed for each class."""
PAIRS = 200
"""Most pairs of nearly equal classes that are listed."""
DIGITS = 4
"""Decimals of coordinates and cosines."""


def table_page(content: dict[str, Any], source: str, evaluation: Path | None = None) -> str:
    """Returns the page as a single HTML file.

    Args:
        content: content of a checkpoint with an embedding head.
        source: name of the model, for the title.
        evaluation: folder of an evaluation of this model, whose classes.csv has the IoU of every class.

    Raises:
        ValueError: the head has no class table, or the evaluation is missing or is of other classes.
    """
    classes = classes_of(content)
    points, shares = principal_components(class_table(content), 3)
    near = neighbors(content, NEIGHBORS)
    pairs = {
        (min(label, other), max(label, other)): cosine for label, each in enumerate(near) for other, cosine in each
    }
    nearest = sorted(pairs.items(), key=lambda pair: -pair[1])[:PAIRS]
    filled = {
        "title": source,
        "names": classes.names,
        "ids": classes.ids.tolist(),
        "samples": None if classes.train_samples is None else classes.train_samples.tolist(),
        "points": [[round(value, DIGITS) for value in point] for point in points.tolist()],
        "shares": [round(share, DIGITS) for share in shares.tolist()],
        "near": [[[label, round(cosine, DIGITS)] for label, cosine in each] for each in near],
        "pairs": [[first, second, round(cosine, DIGITS)] for (first, second), cosine in nearest],
        "levels": [{"names": level.names, "group_of": level.group_of.tolist()} for level in levels_of(classes)],
        "iou": None if evaluation is None else _iou_of(classes, evaluation),
    }
    return fill_page("table.html", filled)


def principal_components(rows_CD: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Projects unit rows to their first principal components.

    Returns:
        The coordinates (C, count), scaled together to at most 1 in size, and the share of the variance of each component. If
        D < count, the others are 0.
    """
    unit_CD = F.normalize(rows_CD.double(), dim=1)
    centered_CD = unit_CD - unit_CD.mean(0)
    values, vectors = torch.linalg.eigh(centered_CD.T @ centered_CD)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)[:, :count]
    # The sign of an eigenvector is arbitrary; its largest entry is made positive, so that pages can be compared.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    points = centered_CD @ (vectors * largest.sign())
    missing = max(count - points.shape[1], 0)
    shares = F.pad(values[:count] / values.sum().clamp(min=1e-12), (0, missing))
    return F.pad(points / points.abs().max().clamp(min=1e-12), (0, missing)), shares


def _iou_of(classes: ModelClasses, evaluation: Path) -> list[float | None]:
    path = evaluation / "classes.csv"
    try:
        with path.open(newline="") as file:
            rows: Sequence[dict[str, str]] = list(csv.DictReader(file))
        names, iou = [row["name"] for row in rows], [float(row["iou"]) if row["iou"] else None for row in rows]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}): expected what kiloseg evaluate wrote"
        ) from error
    if names != classes.names:
        strange = next((name for name in names if name not in classes.names), None)
        detail = f"it has {strange!r}" if strange else f"it has {len(names)} classes, the model {len(classes)}"
        raise ValueError(f"{path} is of a model with other classes ({detail}); evaluate this model")
    return iou
