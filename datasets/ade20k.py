"""Builds ADE20K: the 150 classes of the scene parsing challenge, 20,210 images to train and 2,000 to validate.

    python datasets/ade20k.py --root ARCHIVES --out data/ade20k

Id 0 of the masks, "other", is ignored, so class ids are the raw ids minus one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.ade20k import FOLDERS, LICENSE, places
from common.archive import Archive, ArchiveOutput, build_archive
from common.command_line import run
from common.label_table import class_names, read_table
from common.pairs import Pair
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo

NAME = "ade20k"
VERSION = 1
"""The version is raised with every change that changes a sample."""

FOLDER = "ADEChallengeData2016"


@dataclass(frozen=True, kw_only=True)
class Arguments(ArchiveOutput):
    """Builds ADE20K: the 150 classes of the scene parsing challenge. --root holds ADEChallengeData2016."""


def build_ade20k(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that exist; raises the same errors as `build_archive`."""
    rows = read_table(NAME)
    class_ids = {0: IGNORE_ID} | {int(row["raw_id"]): int(row["class_id"]) for row in rows}
    return build_archive(ARCHIVE, arguments, class_names(rows), class_ids)


def list_pairs(root: Path, split: str) -> list[Pair]:
    """Lists all images of a split with the masks that they should have."""
    folder = FOLDERS[split]
    return [
        Pair(
            key=image.stem,
            image=str(image.relative_to(root)),
            mask=f"{FOLDER}/annotations/{folder}/{image.stem}.png",
        )
        for image in sorted((root / FOLDER / "images" / folder).glob("*.jpg"))
    ]


ARCHIVE = Archive(
    name=NAME,
    version=VERSION,
    places=places(f"{FOLDER}/images", 20210),
    list_pairs=list_pairs,
    layout=f"Unpack ADEChallengeData2016.zip of the scene parsing challenge into --root, so that it holds {FOLDER}",
    ids="Expected annotations of the challenge, with ids 0 to 150, not those of the full data set",
    license=LICENSE,
)


if __name__ == "__main__":
    run(build_ade20k, Arguments)
