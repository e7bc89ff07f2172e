"""Builds COCO-Stuff 10k v1.1: 171 classes of things and stuff, 9,000 images to train and 1,000 to validate.

    python datasets/coco_stuff10k.py --root ARCHIVES --out data/coco_stuff10k

Ids run from 1 to 182, of which 11 were never annotated: --num-classes 182 keeps a class for each of them, as some published
results do, and class ids are then the raw ids minus one. Unlabeled pixels (0) are ignored. The archive calls its validation split
test.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.archive import Archive, ArchiveOutput, build_archive
from common.command_line import run
from common.label_table import class_names, read_table
from common.matlab import read_matlab
from common.pairs import Pair, Place, read_list
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo

NAME = "coco_stuff10k"
VERSION = 1
"""The version is raised with every change that changes a sample."""

LISTS = {"train": "imageLists/train.txt", "val": "imageLists/test.txt"}


@dataclass(frozen=True, kw_only=True)
class Arguments(ArchiveOutput):
    """Builds COCO-Stuff 10k v1.1: 171 classes of things and stuff. --root holds images, annotations and imageLists."""

    num_classes: Literal[171, 182] = 171
    """171 builds the classes that were annotated. 182 builds all ids of COCO, of which 11 never occur. mIoU is taken over those
    that occur, but a network has outputs for all, so say which of the two a result was made with."""


def build_coco_stuff10k(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that exist; raises the same errors as `build_archive`."""
    column = f"class_id_{arguments.num_classes}"
    rows = read_table("coco_stuff")
    return build_archive(
        ARCHIVE,
        arguments,
        class_names(rows, column),
        {0: IGNORE_ID} | {int(row["raw_id"]): int(row[column]) for row in rows if row[column]},
        recipe={"num_classes": arguments.num_classes},
    )


def list_pairs(root: Path, split: str) -> list[Pair]:
    """Lists all images of a split with the masks that they should have."""
    names = read_list(root / LISTS[split])
    return [Pair(key=name, image=f"images/{name}.jpg", mask=f"annotations/{name}.mat") for name in names]


ARCHIVE = Archive(
    name=NAME,
    version=VERSION,
    places={"train": Place(LISTS["train"], 9000), "val": Place(LISTS["val"], 1000)},
    list_pairs=list_pairs,
    layout="Unpack cocostuff-10k-v1.1.zip into --root, so that it holds images, annotations and imageLists",
    ids="Expected label maps of version 1.1, with ids 0 to 182 without the 11 that are unused",
    license="COCO-Stuff annotations: CC BY 4.0; images: Flickr terms of use, as COCO "
    "(https://cocodataset.org/#termsofuse). Cite Caesar et al., CVPR 2018.",
    read_ids=functools.partial(read_matlab, names=("S",)),
)


if __name__ == "__main__":
    run(build_coco_stuff10k, Arguments)
