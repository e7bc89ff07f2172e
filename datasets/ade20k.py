"""Builds ADE20K: the 150 classes of the scene parsing challenge, 20,210 images to train and 2,000 to validate.

    python datasets/ade20k.py --root ARCHIVES --out data/ade20k

Id 0 of the masks, "other", is ignored, so that class ids are the raw ids less one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.command_line import run
from common.label_table import class_names, lookup, read_table, to_class_ids
from common.pairs import Pair, Place, build_pairs, find_splits, read_ids
from kiloseg.data.shards import IGNORE_ID, DatasetInfo
from kiloseg.data.writing.build import Output

NAME = "ade20k"
VERSION = 1
"""Raised with every change that changes a sample."""

FOLDER = "ADEChallengeData2016"
FOLDERS = {"train": "training", "val": "validation"}
PLACES = {"train": Place(f"{FOLDER}/images/training", 20210), "val": Place(f"{FOLDER}/images/validation", 2000)}
MEND = f"Unpack ADEChallengeData2016.zip of the scene parsing challenge into --root, so that it holds {FOLDER}"
LICENCE = (
    "ADE20K: images for non-commercial research and education, annotations BSD 3-Clause; see the terms at "
    "https://ade20k.csail.mit.edu. Cite Zhou et al., CVPR 2017."
)


@dataclass(frozen=True, kw_only=True)
class Arguments(Output):
    """Builds ADE20K: the 150 classes of the scene parsing challenge."""

    root: Path
    """Folder that holds ADEChallengeData2016."""


def build_ade20k(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that are there.

    Raises:
        DataError: files that are missing or hold something else, or as `build`.
    """
    splits = find_splits(NAME, arguments.root, PLACES, list_pairs, MEND)
    rows = read_table(NAME)
    table = lookup({0: IGNORE_ID} | {int(row["raw_id"]): int(row["class_id"]) for row in rows})
    info = DatasetInfo(
        name=NAME,
        classes=class_names(rows),
        background=None,
        licence=LICENCE,
        command=arguments.command("datasets/ade20k.py"),
        recipe={"builder": NAME, "version": VERSION},
    )
    return build_pairs(arguments, info, arguments.root, splits, functools.partial(read_mask, table=table))


def list_pairs(root: Path, split: str) -> list[Pair]:
    """All images of a split with the masks that they should have."""
    folder = FOLDERS[split]
    return [
        Pair(
            key=image.stem,
            image=str(image.relative_to(root)),
            mask=f"{FOLDER}/annotations/{folder}/{image.stem}.png",
        )
        for image in sorted((root / FOLDER / "images" / folder).glob("*.jpg"))
    ]


def read_mask(path: Path, *, table: np.ndarray) -> np.ndarray:
    """uint16 class ids of shape (H, W); raises DataError."""
    mend = "Expected annotations of the challenge, with ids 0 to 150, not those of the full data set; restore the file"
    return to_class_ids(read_ids(path), table, path, mend)


if __name__ == "__main__":
    run(build_ade20k, Arguments)
