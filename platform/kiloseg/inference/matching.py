"""Matches the classes of a data set with those of a model, by ids for a model as it was trained, and otherwise by names.

Shapes: C classes of the model, N classes of the data set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kiloseg.config import Data
from kiloseg.data.classes import select_classes
from kiloseg.data.description import DatasetInfo
from kiloseg.inference.classes import ModelClasses
from kiloseg.storage.errors import DataError

IGNORED = -1
ABSENT = -2
"""Label of the pixels of classes that the model does not have."""
SHOWN = 5
"""Most names in a message."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Matching:
    """Says which label of the model the classes of a data set have."""

    label_of: np.ndarray
    """The label of every id: int64 of shape (N + 1,). IGNORED, ABSENT, or 0 to C - 1. The last entry is for ignored pixels."""
    in_data: np.ndarray
    """Whether some class of the data set has the label: bool of shape (C,)."""
    absent: list[str]
    """Names of the classes of the data set that the model does not have."""


def match_classes(classes: ModelClasses, data: Data, info: DatasetInfo, *, by_name: bool = False) -> Matching:
    """Matches the classes of a data set with those of a model.

    A model as it was trained must have the data set's classes, with their ids. After its classes were changed, classes are
    matched by name, and a merged class has the names of all its parts.

    Args:
        classes: the classes of the model.
        data: the settings of the model's run, with the path of the data set.
        info: the description of the data set.
        by_name: match by name, and let both have classes that the other lacks.

    Raises:
        DataError: the data set and the model have different classes; the message names one.
    """
    selected = select_classes(data, info) if data.num_classes is None or data.num_classes <= info.num_classes else None
    if by_name or classes.edited:
        return _by_name(classes, data, info, None if by_name or selected is None else selected.ids)
    if selected is None or len(classes) != len(selected.ids):
        raise DataError(
            f"{data.path} has {info.num_classes if selected is None else len(selected.ids)} classes, but the model has "
            f"{len(classes)}: expected the data set it was trained on, {classes.data or 'whose name is unknown'}, or one "
            "with the same classes; --by-name compares the classes that both have"
        )
    for label, (mine, theirs) in enumerate(zip(classes.ids, selected.ids, strict=True)):
        if mine != theirs or classes.names[label] not in (info.classes[theirs], f"class {label}"):
            raise DataError(
                f"{data.path} has class {theirs} ({info.classes[theirs]!r}) where the model has {mine} "
                f"({classes.names[label]!r}): expected a data set with the model's classes; --by-name compares those that both "
                "have"
            )
    label_of = np.full(info.num_classes + 1, ABSENT if selected.others < 0 else selected.others)
    label_of[selected.ids] = np.arange(len(classes))
    return _matching(label_of, classes, info)


def _by_name(classes: ModelClasses, data: Data, info: DatasetInfo, trained: np.ndarray | None) -> Matching:
    """Matches by name.

    Args:
        classes: the classes of the model.
        data: the settings of the model's run.
        info: the description of the data set.
        trained: ids of the classes that the run was trained on. The others were background in training, if there is one, and
            a class that is neither in the model nor removed is an error. None if the data set may be another one.
    """
    label_of_name = {name: label for label in range(len(classes)) for name in classes.also_called(label)}
    label_of_name |= {name: label for label, name in enumerate(classes.names)}
    label_of = np.array([label_of_name.get(name, ABSENT) for name in info.classes] + [IGNORED])
    missing = np.flatnonzero(label_of == ABSENT)
    if trained is not None:
        gone = set(classes.removed)
        strange = [
            name for name in (info.classes[number] for number in np.intersect1d(missing, trained)) if name not in gone
        ]
        if strange:
            raise DataError(
                f"{data.path} has classes that the model neither has nor lost: {_some(strange)}; expected the data set it was "
                f"trained on, {classes.data or 'whose name is unknown'}; --by-name compares the classes that both have"
            )
        if classes.background is not None and data.other_classes == "background":
            label_of[np.setdiff1d(missing, trained)] = classes.background
    if not (label_of >= 0).any():
        raise DataError(
            f"{data.path} and the model have no class name in common; the data set has {_some(info.classes)}, the model "
            f"{_some(classes.names)}"
        )
    return _matching(label_of, classes, info)


def _matching(label_of: np.ndarray, classes: ModelClasses, info: DatasetInfo) -> Matching:
    label_of = label_of.astype(np.int64)
    label_of[-1] = IGNORED
    in_data = np.zeros(len(classes), dtype=bool)
    in_data[label_of[label_of >= 0]] = True
    absent = [info.classes[number] for number in np.flatnonzero(label_of == ABSENT)]
    return Matching(label_of=label_of, in_data=in_data, absent=absent)


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
