"""Builds PASCAL VOC 2012: 21 classes including the background, with the additional masks of SBD if they are available.

    python datasets/voc.py --root ARCHIVES --out data/voc

Split train is `trainaug`, the 10,582 images that results are commonly reported for, if --root holds SBD's benchmark_RELEASE, and
otherwise the 1,464 of VOC itself. val is VOC's, 1,449 images. trainaug = (VOC train + SBD train + SBD val) - VOC val: without the
subtraction, one would train on images of val. If both have a mask of an image, VOC's is used, which is finer and marks boundaries
as ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.archive import Archive, ArchiveOutput, build_archive
from common.command_line import run
from common.label_table import class_names, read_table
from common.matlab import read_matlab
from common.pairs import Pair, Place, read_ids, read_list
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo
from kiloseg.storage.errors import DataError

NAME = "voc"
VERSION = 1
"""The version is raised with every change that changes a sample."""

VOC = "VOCdevkit/VOC2012"
SBD = "benchmark_RELEASE/dataset"
LISTS = f"{VOC}/ImageSets/Segmentation"
NUM_TRAIN, NUM_TRAINAUG, NUM_VAL = 1464, 10582, 1449
LAYOUT = (
    "Unpack VOCtrainval_11-May-2012.tar and, for trainaug, SBD's benchmark.tgz into --root, so that it holds VOCdevkit and "
    "benchmark_RELEASE"
)


@dataclass(frozen=True, kw_only=True)
class Arguments(ArchiveOutput):
    """Builds PASCAL VOC 2012: 21 classes including the background; train is trainaug if SBD is available.

    --root holds VOCdevkit and, for the 10,582 images of trainaug, SBD's benchmark_RELEASE.
    """


def build_voc(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that exist.

    Raises:
        DataError: Files are missing or hold something else, or as for `build`.
    """
    root = arguments.root
    has_sbd = (root / SBD).is_dir()
    train = (
        f"trainaug, with the masks of {root / SBD}" if has_sbd else f"VOC's own list, since {root / SBD} does not exist"
    )
    print(f"{NAME}: split train is {train}")
    archive = Archive(
        name=NAME,
        version=VERSION,
        places={
            "train": Place(f"{LISTS}/train.txt", NUM_TRAINAUG if has_sbd else NUM_TRAIN),
            "val": Place(f"{LISTS}/val.txt", NUM_VAL),
        },
        list_pairs=list_pairs,
        layout=LAYOUT,
        ids="Expected ids 0 to 20, and 255 for boundaries",
        license="PASCAL VOC 2012: images under the terms of Flickr, for research; SBD: masks by Hariharan et al., for "
        "research. See http://host.robots.ox.ac.uk/pascal/VOC/voc2012/. Cite Everingham et al., IJCV 2015, and Hariharan "
        "et al., ICCV 2011.",
        read_ids=read_either,
    )
    rows = read_table(NAME)
    class_ids = {int(row["class_id"]): int(row["class_id"]) for row in rows} | {255: IGNORE_ID}
    return build_archive(archive, arguments, class_names(rows), class_ids, background=0)


def list_pairs(root: Path, split: str) -> list[Pair]:
    """Lists all images of a split with the masks that they should have; train is trainaug if SBD is there."""
    pairs = [_voc_pair(name) for name in read_list(root / LISTS / f"{split}.txt")]
    if split == "train" and (root / SBD).is_dir():
        for file in ("train.txt", "val.txt"):
            if not (root / SBD / file).is_file():
                raise DataError(
                    f"{root / SBD / file} is missing: SBD lists its images in train.txt and val.txt. {LAYOUT}"
                )
        if not (root / LISTS / "val.txt").is_file():
            raise DataError(
                f"{root / LISTS / 'val.txt'} is missing: trainaug leaves out its images, which SBD contains too. {LAYOUT}"
            )
        sbd = {*read_list(root / SBD / "train.txt"), *read_list(root / SBD / "val.txt")}
        taken = {pair.key for pair in pairs} | set(read_list(root / LISTS / "val.txt"))
        pairs += [
            Pair(key=name, image=f"{SBD}/img/{name}.jpg", mask=f"{SBD}/cls/{name}.mat") for name in sorted(sbd - taken)
        ]
    return pairs


def _voc_pair(name: str) -> Pair:
    return Pair(key=name, image=f"{VOC}/JPEGImages/{name}.jpg", mask=f"{VOC}/SegmentationClass/{name}.png")


def read_either(path: Path) -> np.ndarray:
    """Reads ids of shape (H, W) from VOC's palette PNG or SBD's .mat; raises DataError."""
    return read_matlab(path, ("GTcls", "Segmentation")) if path.suffix == ".mat" else read_ids(path)


if __name__ == "__main__":
    run(build_voc, Arguments)
