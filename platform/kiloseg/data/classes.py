"""Selects the classes of a run: all classes of the data set, or its most frequent ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np

from kiloseg.config import Config, Data
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo, read_info
from kiloseg.data.index import NAME as INDEX
from kiloseg.data.index import class_samples, read_index
from kiloseg.overrides import with_sizes
from kiloseg.storage.filesystems import open_folder

UNKNOWN = -2
"""Value that the look-up table holds for ids that the data set does not have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Classes:
    """Says which classes of the data set the labels 0 to C - 1 stand for."""

    ids: np.ndarray
    """Ids of the classes in the data set, in ascending order: int64 of shape (C,)."""
    names: list[str]
    background: int | None
    """The label of the background, if the data set has one."""
    others: int = -1
    """The label given to classes that the run does not use: the background, or -1, which is ignored."""

    def __len__(self) -> int:
        return len(self.ids)


def count_classes(data: Data, info: DatasetInfo) -> int:
    """Returns how many classes a run over this data set has.

    Raises:
        ValueError: `data.num_classes` asks for more classes than there are. The setting is wrong, not the data.
    """
    if data.num_classes is not None and data.num_classes > info.num_classes:
        raise ValueError(
            f"data.num_classes = {data.num_classes}, but data set {info.name} has only {info.num_classes} classes; lower it"
        )
    return data.num_classes or info.num_classes


def with_sizes_of_data(config: Config) -> Config:
    """Returns the config of a run with numbers where its sizes are "auto"; its data set is read only then.

    Raises:
        ValueError: as `count_classes`, or the sizes do not fit the number of classes.
    """
    if "auto" not in (config.model.embed_dim, config.loss.negatives.count):
        return config
    return with_sizes(config, count_classes(config.data, read_info(config.data.path)))


def select_classes(data: Data, info: DatasetInfo) -> Classes:
    """Returns the classes of a run, as `data.num_classes` says. Reads the index only if some classes are left out.

    Raises:
        DataError: more classes are asked for than there are, or there is no index to count them by.
    """
    num_classes = count_classes(data, info)
    ids = np.arange(info.num_classes)
    if num_classes < info.num_classes:
        samples = class_samples(read_index(data.path, "train"), info.num_classes)
        if info.background is not None:
            samples[info.background] = np.iinfo(samples.dtype).max
        # A stable sort of the negated counts puts the lower id first among equals.
        ids = np.sort(np.argsort(-samples, kind="stable")[:num_classes])
    background = None if info.background is None else int(np.searchsorted(ids, info.background))
    return Classes(
        ids=ids,
        names=[info.classes[c] for c in ids],
        background=background,
        others=-1 if background is None or data.other_classes == "ignore" else background,
    )


def iou_table(data: Data, iou_per_class: Sequence[float]) -> dict[str, list[Any]]:
    """Returns columns with the id, name and IoU of each class of a run; the IoU is None if the class does not occur."""
    classes = select_classes(data, read_info(data.path))
    return {
        "class_id": classes.ids.tolist(),
        "name": classes.names,
        "iou": [None if math.isnan(iou) else iou for iou in iou_per_class],
    }


class ClassRecord(TypedDict):
    """Describes the classes of a checkpoint with numbers, strings and lists of them."""

    ids: list[int]
    """The ids that the labels 0 to C - 1 have in the data set."""
    names: list[str]
    background: int | None
    """The label of the background, if there is one."""
    train_samples: list[int] | None
    """How many training samples contain each class; None if that is unknown."""
    data: str
    """Name of the data set."""
    digest: str
    """The digest of the data set, as given by dataset.json."""
    other_names: NotRequired[list[list[str]]]
    """Other names of each class: earlier ones, and those of classes that were merged into it."""
    removed: NotRequired[list[str]]
    """Names of the classes of the data set that were removed from the model."""
    edited: NotRequired[bool]
    """Whether classes were changed after training."""
    groups: NotRequired[list[list[str]] | None]
    """The groups that each class belongs to, the largest group first; None if there are none."""
    known_from: NotRequired[float | None]
    """Pixels with a lower familiarity show none of the classes (`kiloseg classes SOURCE unknown`); None if it is not calibrated."""


def record_classes(data: Data) -> ClassRecord:
    """Returns the classes of a run in the form that its checkpoints store.

    Raises:
        DataError: the data set at `data.path` does not exist or is damaged.
    """
    info = read_info(data.path)
    classes = select_classes(data, info)
    return {
        "ids": classes.ids.tolist(),
        "names": classes.names,
        "background": classes.background,
        "train_samples": _train_samples(data, info, classes.ids),
        "data": info.name,
        "digest": info.digest,
    }


def _train_samples(data: Data, info: DatasetInfo, ids: np.ndarray) -> list[int] | None:
    """Returns how many training samples contain each of the classes `ids`, or None for a data set without an index."""
    if INDEX not in open_folder(data.path).entries():
        return None
    index = read_index(data.path, "train", columns=["class_ids"])
    return class_samples(index, info.num_classes)[ids].tolist()


def label_type(info: DatasetInfo) -> np.dtype:
    """Returns the smaller of two types that can hold -1 and every class id.

    Labels are most of what a loader moves around besides images, so their size matters.
    """
    return np.dtype(np.int16 if info.num_classes <= np.iinfo(np.int16).max else np.int32)


def label_table(info: DatasetInfo, classes: Classes) -> np.ndarray:
    """Returns the only look-up table from stored ids to labels. It has length 65,536 and type `label_type`."""
    table = np.full(IGNORE_ID + 1, UNKNOWN, dtype=label_type(info))
    table[: info.num_classes] = classes.others
    table[classes.ids] = np.arange(len(classes))
    table[IGNORE_ID] = -1
    return table
