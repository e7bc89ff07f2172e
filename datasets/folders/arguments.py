"""What a user says about images and labels of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from common.images import Exif
from common.label_table import MAX_RAW_ID
from common.regions import Overlap
from folders.splits import parse_splits
from kiloseg.data.writing.build import Output

NAME = "folder"
VERSION = 2
"""Raised with every change that changes a sample."""

Format = Literal["masks", "coco", "labelme", "cvat", "yolo", "labelstudio", "supervisely"]


@dataclass(frozen=True, kw_only=True)
class Arguments(Output):
    """Builds a data set from your own images and labels, as your tool wrote them: name their folder or file."""

    path: tyro.conf.Positional[Path | None] = None
    """Folder (or file) that a tool wrote: what is in it is found out and said. Or name --images with --masks or
    --annotations."""
    format: Format | None = None
    """How to read PATH, where it can be read in several ways."""
    images: Path | None = None
    """Folder of images, at any depth; subfolders train, val, ... (or training, valid, train2017, ...) are the splits."""
    masks: Path | None = None
    """Folder of masks in the same subfolders under the same names; needs --names."""
    names: Path | None = None
    """Class names for masks: csv with the columns id and name (or name alone: ids count from 0), a name a line, json, yaml,
    or CVAT's labelmap.txt. Class ids are the ranks of these ids. An id with an empty name is ignored. With colors (columns
    r, g, b) masks may be colored."""
    annotations: Path | None = None
    """COCO or LVIS style json, or a folder with a json for each split. Image files are file_name, or the last two parts of
    coco_url, inside --images (or inside its subfolder of the split)."""
    splits: tuple[str, ...] = ()
    """Splits of folders with other names, as --splits holdout=val old=none; none leaves a folder out."""
    test: bool = False
    """Build the images of a test folder too, as split test; they are left out otherwise."""
    ignore_id: int | None = None
    """Id in masks that means ignore. Default: 255 in masks of 8 bits, unless --names has it; 65535 always is."""
    reduce_zero_label: bool = False
    """Id 0 of masks is ignored and every other id counts one less, as MMSegmentation's setting of that name."""
    unlabelled: Literal["ignore", "background"] = "ignore"
    """What pixels outside all annotations are. background: class 0 of that name, before all others. ignore: they are
    neither trained on nor counted. Masks say so themselves."""
    overlap: Overlap | None = None
    """Which annotation a pixel belongs to that several cover: the last or the first of the file, or the smallest. Default:
    smallest, or the file's own order where its tool has one (CVAT's z-order; labelme, Supervisely and Label Studio draw the
    last on top)."""
    val_fraction: float = 0.1
    """Share of the images that is set aside as val, where no folders or lists tell; from 0 to below 1."""
    seed: int = 0
    """Another seed sets other images aside."""
    exif: Exif = "refuse"
    """What to do with images whose EXIF data says that they are to be shown turned. Labels may have been drawn either way,
    so say which: apply turns the image (stored as PNG), ignore takes it as it is stored."""
    name: str = NAME
    """Name of the data set."""
    licence: str = "not stated"
    """Terms of the images and labels, for dataset.json."""
    index: Path | None = None
    """Folder for annotations sorted by image, made once and kept. Default: a folder kiloseg beside them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None:
            if self.images is not None or self.masks is not None or self.annotations is not None:
                raise ValueError("expected a PATH alone, or --images with --masks or --annotations")
        else:
            if self.images is None or (self.masks is None) == (self.annotations is None):
                raise ValueError(
                    "expected a PATH that a tool wrote, or --images with either --masks with --names or --annotations"
                )
            if (self.masks is None) != (self.names is None):
                raise ValueError(
                    "--masks and --names go together: masks hold ids and a table their names; annotations bring their "
                    "categories along"
                )
        if self.masks is not None and self.unlabelled != "ignore":
            raise ValueError("unlabelled is for annotations: masks have an id at each pixel")
        if self.masks is not None and self.overlap is not None:
            raise ValueError("overlap is for annotations: masks have an id at each pixel")
        if self.annotations is not None and (self.ignore_id is not None or self.reduce_zero_label):
            flag = "reduce_zero_label" if self.ignore_id is None else "ignore_id"
            raise ValueError(f"{flag} is for masks: annotations have no such id")
        if self.ignore_id is not None and not 0 <= self.ignore_id <= MAX_RAW_ID:
            raise ValueError(f"ignore_id = {self.ignore_id}: expected 0 to {MAX_RAW_ID}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction = {self.val_fraction}: expected 0 to below 1")
        parse_splits(self.splits)

    @property
    def given_splits(self) -> dict[str, str]:
        """Folder to split, as --splits says."""
        return parse_splits(self.splits)
