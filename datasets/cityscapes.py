"""Builds Cityscapes: 19 classes of street scenes, 2,975 images to train and 500 to validate.

    python datasets/cityscapes.py --root ARCHIVES --out data/cityscapes

Masks are read from labelIds and mapped to the 19 classes of the benchmark; every other label is ignored. The test split has no
public labels and is not built.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.archive import Archive, ArchiveOutput, build_archive
from common.command_line import run
from common.label_table import class_names, ignore_or, read_table
from common.pairs import Pair, Place
from kiloseg.data.description import DatasetInfo

NAME = "cityscapes"
VERSION = 1
"""The version is raised with every change that changes a sample."""


@dataclass(frozen=True, kw_only=True)
class Arguments(ArchiveOutput):
    """Builds Cityscapes: 19 classes of street scenes. --root holds leftImg8bit and gtFine."""


def build_cityscapes(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that exist; raises the same errors as `build_archive`."""
    rows = read_table(NAME)
    # Raw id -1, the license plate, is never drawn into a mask.
    class_ids = {int(row["raw_id"]): ignore_or(row["class_id"]) for row in rows if int(row["raw_id"]) >= 0}
    return build_archive(ARCHIVE, arguments, class_names(rows), class_ids)


def list_pairs(root: Path, split: str) -> list[Pair]:
    """Lists all images of a split with the masks that they should have."""
    pairs = []
    for image in sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        key = image.name.removesuffix("_leftImg8bit.png")
        mask = f"gtFine/{split}/{image.parent.name}/{key}_gtFine_labelIds.png"
        pairs.append(Pair(key=key, image=str(image.relative_to(root)), mask=mask))
    return pairs


ARCHIVE = Archive(
    name=NAME,
    version=VERSION,
    places={"train": Place("leftImg8bit/train", 2975), "val": Place("leftImg8bit/val", 500)},
    list_pairs=list_pairs,
    layout="Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of cityscapes-dataset.com into --root",
    ids="Expected labelIds of gtFine, with ids 0 to 33",
    license="Cityscapes: free for non-commercial research and education after registration, redistribution not allowed "
    "(https://www.cityscapes-dataset.com/license/). Cite Cordts et al., CVPR 2016.",
)


if __name__ == "__main__":
    run(build_cityscapes, Arguments)
