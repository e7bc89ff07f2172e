"""Checks that a split has any labels for the classes of a run. It reads the index, so it opens no shard."""

from __future__ import annotations

import numpy as np
import pyarrow.compute
import pyarrow.parquet

from kiloseg.config import Data
from kiloseg.data.classes import select_classes
from kiloseg.data.description import DatasetInfo
from kiloseg.data.index import NAME
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import open_folder


def require_labeled(data: Data, info: DatasetInfo) -> None:
    """Rejects a training or validation split in which no pixel is labeled, since it would train or measure nothing.

    It reads the index up to the first sample with a label. Without a readable index nothing is known or rejected.

    Raises:
        DataError: a split has no labels for the classes of the run.
    """
    classes = select_classes(data, info)
    used = np.arange(info.num_classes) if classes.others >= 0 else classes.ids
    for split, samples in (("train", None), *((split, data.val_samples) for split in data.val_splits)):
        if info.num_samples(split) and not _has_label(data.path, info, split, used, samples):
            first = f"the first {samples} samples of split" if samples else "split"
            raise DataError(
                f"{open_folder(data.path).at(NAME)}: {first} {split!r} of data set {info.name} hold no pixel of the "
                f"{len(classes)} classes of this run, so "
                + ("nothing can be learned" if split == "train" else "there is nothing to validate")
                + "; build the data set from images with masks, or raise data.num_classes"
                + (" or data.val_samples" if samples else "")
            )


def _has_label(path: str, info: DatasetInfo, split: str, used: np.ndarray, samples: int | None) -> bool:
    """Returns whether one of the first `samples` samples of a split has a class of `used`; True if that is unknown."""
    left = info.num_samples(split) if samples is None else samples
    try:
        file = pyarrow.parquet.ParquetFile(open_folder(path).random_access(NAME))
        groups = [number for number in range(file.num_row_groups) if _may_hold(file.metadata.row_group(number), split)]
        for batch in file.iter_batches(row_groups=groups, columns=["split", "class_ids"]):
            rows = batch.filter(pyarrow.compute.equal(batch["split"], split)).slice(0, left)
            if np.isin(rows["class_ids"].flatten().to_numpy(), used).any():
                return True
            left -= len(rows)
            if not left:
                return False
    except (OSError, ValueError, KeyError):  # pyarrow's own errors derive from these
        return True
    return left > 0  # True if the index lacks samples


def _may_hold(group: pyarrow.parquet.RowGroupMetaData, split: str) -> bool:
    """Returns whether a row group may contain rows of the split, judging by its smallest and largest value."""
    columns = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    extremes = columns["split"].statistics
    return extremes is None or not extremes.has_min_max or extremes.min <= split <= extremes.max
