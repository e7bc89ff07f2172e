"""Builds Cityscapes: 19 classes of street scenes, 2,975 images to train and 500 to validate.

    python datasets/cityscapes.py --root ARCHIVES --out data/cityscapes

Masks are read from labelIds and mapped to the 19 classes of the benchmark; every other label is ignored. The test split
has no public labels and is left alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.command_line import run
from common.label_table import class_names, ignore_or, lookup, read_table, to_class_ids
from common.pairs import Pair, Place, build_pairs, find_splits, read_ids
from kiloseg.data.shards import DatasetInfo
from kiloseg.data.writing.build import Output

NAME = "cityscapes"
VERSION = 1
"""Raised with every change that changes a sample."""

PLACES = {"train": Place("leftImg8bit/train", 2975), "val": Place("leftImg8bit/val", 500)}
MEND = "Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com into --root"
LICENCE = (
    "Cityscapes: free for non-commercial research and education after registration, redistribution not allowed "
    "(https://www.cityscapes-dataset.com/license/). Cite Cordts et al., CVPR 2016."
)


@dataclass(frozen=True, kw_only=True)
class Arguments(Output):
    """Builds Cityscapes: 19 classes of street scenes."""

    root: Path
    """Folder that holds leftImg8bit and gtFine."""


def build_cityscapes(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that are there.

    Raises:
        DataError: files that are missing or hold something else, or as `build`.
    """
    splits = find_splits(NAME, arguments.root, PLACES, list_pairs, MEND)
    rows = read_table(NAME)
    # Raw id -1, the licence plate, is never drawn into a mask.
    table = lookup({int(row["raw_id"]): ignore_or(row["class_id"]) for row in rows if int(row["raw_id"]) >= 0})
    info = DatasetInfo(
        name=NAME,
        classes=class_names(rows),
        background=None,
        licence=LICENCE,
        command=arguments.command("datasets/cityscapes.py"),
        recipe={"builder": NAME, "version": VERSION},
    )
    return build_pairs(arguments, info, arguments.root, splits, functools.partial(read_mask, table=table))


def list_pairs(root: Path, split: str) -> list[Pair]:
    """All images of a split with the masks that they should have."""
    pairs = []
    for image in sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        key = image.name.removesuffix("_leftImg8bit.png")
        mask = f"gtFine/{split}/{image.parent.name}/{key}_gtFine_labelIds.png"
        pairs.append(Pair(key=key, image=str(image.relative_to(root)), mask=mask))
    return pairs


def read_mask(path: Path, *, table: np.ndarray) -> np.ndarray:
    """uint16 class ids of shape (H, W); raises DataError."""
    return to_class_ids(read_ids(path), table, path, "Expected labelIds of gtFine, with ids 0 to 33; restore the file")


if __name__ == "__main__":
    run(build_cityscapes, Arguments)
