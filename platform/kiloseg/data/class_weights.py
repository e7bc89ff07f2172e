"""Computes the weights of classes in the loss, from the index of the training split or from a file."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from kiloseg.config import Data
from kiloseg.data.classes import Classes, select_classes
from kiloseg.data.description import DatasetInfo
from kiloseg.data.index import read_index

POWERS = {"inverse": 1.0, "sqrt": 0.5}
"""Words of `loss.class_weights` by the power of the inverse share of pixels that they stand for."""


def class_weights(weights: str, data: Data, info: DatasetInfo) -> np.ndarray | None:
    """Returns the weight of every class of a run, float32 of shape (C,); None if all are the same.

    Args:
        weights: the setting `loss.class_weights`: none, inverse, sqrt, or the path of a CSV file.
        data: the data of the run.
        info: the description of that data set.

    Raises:
        ValueError: the file does not exist, has other columns, or names a class that the run has not or a weight that is not
            0 or more.
        DataError: there is no index to count pixels by.
    """
    if weights == "none":
        return None
    classes = select_classes(data, info)
    if weights not in POWERS:
        return _from_file(Path(weights).expanduser(), classes)
    pixels = _pixels(data, info, classes)
    present = pixels > 0
    result = np.ones(len(classes))
    shares = pixels[present] / pixels.sum()
    result[present] = shares ** -POWERS[weights]
    result[present] /= (shares * result[present]).sum()  # the mean weight of a pixel is 1
    return result.astype(np.float32)


def _pixels(data: Data, info: DatasetInfo, classes: Classes) -> np.ndarray:
    """Counts the labeled pixels of each class of the run in the training split."""
    index = read_index(data.path, "train", columns=["class_ids", "class_pixels"])
    ids, pixels = (index[name].combine_chunks().flatten().to_numpy() for name in ("class_ids", "class_pixels"))
    by_id = np.bincount(ids, weights=pixels, minlength=info.num_classes)
    counts = by_id[classes.ids]
    if classes.others >= 0:  # pixels of other classes are labeled as background
        counts[classes.others] += by_id.sum() - counts.sum()
    return counts


def _from_file(path: Path, classes: Classes) -> np.ndarray:
    if not path.is_file():
        raise ValueError(
            f"loss.class_weights = {str(path)!r} is not a file: expected none, {', '.join(POWERS)}, or a CSV file with the columns "
            "name and weight"
        )
    result = np.ones(len(classes), dtype=np.float32)
    labels = {name: label for label, name in enumerate(classes.names)}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if not {"name", "weight"} <= set(rows.fieldnames or ()):
            raise ValueError(
                f"loss.class_weights = {str(path)!r}: expected the columns name and weight in its first line"
            )
        for row in rows:
            name = row["name"]
            if name not in labels:
                raise ValueError(
                    f"{path}, line {rows.line_num}: this run has no class {name!r}; remove the line or correct it"
                )
            result[labels[name]] = _weight(row["weight"], f"{path}, line {rows.line_num}: weight of {name!r}")
    if not result.any():
        raise ValueError(
            f"{path}: all weights are 0, so that nothing would be learned; give some class a weight above 0"
        )
    return result


def _weight(text: str | None, where: str) -> float:
    try:
        weight = float(text or "")
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"{where} is {text!r}: expected a number, 0 or more")
    return weight
