"""Defines what a user says about images and labels of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from common.images import Exif
from common.label_table import MAX_RAW_ID
from common.regions import Overlap
from folders.splits import parse_splits
from kiloseg.data.writing.output import Output

NAME = "folder"
SMALLEST_TILE = 32
VERSION = 3
"""The version is raised with every change that changes a sample."""

Format = Literal[
    "masks",
    "coco",
    "panoptic",
    "labelme",
    "cvat",
    "yolo",
    "labelstudio",
    "supervisely",
    "openimages",
    "parquet",
    "fiftyone",
    "via",
    "datumaro",
]


@dataclass(frozen=True, kw_only=True)
class Arguments(Output):
    """Builds a data set from your own images and labels, as your tool wrote them: name their folder or file."""

    path: tyro.conf.Positional[Path | None] = None
    """The folder (or file) that a tool wrote; its contents are detected and reported. Alternatively, give --images with --masks or
    --annotations."""
    format: Format | None = None
    """How to read PATH, if it can be read in several ways."""
    images: Path | None = None
    """The folder of images, at any depth; subfolders train, val, ... (or training, valid, train2017, ...) are the splits."""
    masks: Path | None = None
    """The folder of masks in the same subfolders under the same names; it needs --names."""
    names: Path | None = None
    """The class names for masks: csv with the columns id and name (or name alone: ids count from 0), one name per line, json,
    yaml, or CVAT's labelmap.txt. Class ids are the ranks of these ids. An id with an empty name is ignored. With colors (columns
    r, g, b), masks may be colored."""
    annotations: Path | None = None
    """COCO or LVIS style json, or a folder with one json per split. Image files are file_name, or the last two parts of coco_url,
    inside --images (or inside its subfolder of the split)."""
    splits: tuple[str, ...] = ()
    """The splits of folders with other names, such as --splits holdout=val old=none; none leaves a folder out."""
    test: bool = False
    """Builds the images of a test folder too, as split test; otherwise they are left out."""
    ignore_id: int | None = None
    """The id in masks that means ignore. Default: 255 in 8-bit masks, unless --names has it; 65535 always is."""
    reduce_zero_label: bool = False
    """Ignores id 0 of masks and lowers every other id by one, like MMSegmentation's setting of that name."""
    colormap: Literal["voc"] | None = None
    """What colored masks mean if --names has no colors: voc is PASCAL VOC's color map, by the ids of the table."""
    columns: tuple[str, ...] = ()
    """The columns of images and of masks in Parquet files, in this order, if their names do not tell."""
    label_field: str | None = None
    """The field of labels of a FiftyOneDataset, or the region attribute that is the class in VIA's json, if there are several."""
    annotator: str = "first"
    """Whose annotation counts if an image has several in Label Studio: first, last, or the id or email of a person. One that is
    marked as ground truth comes before all others."""
    region_label: Literal["first", "last"] = "first"
    """Which label counts if a region has several in Label Studio."""
    tile: int | None = None
    """Cuts images that are longer or wider than this many pixels, with their masks, into tiles of at most this size, which are
    stored as PNG; tiles without a label are left out."""
    unlabeled: Annotated[Literal["ignore", "background"], tyro.conf.arg(aliases=("--unlabelled",))] = "ignore"
    """What pixels outside all annotations are. background makes them class 0 of that name, before all others. ignore means they
    are neither trained on nor counted. Masks state this themselves."""
    overlap: Overlap | None = None
    """Which annotation a pixel belongs to if several cover it: the last or the first in the file, or the smallest. Default:
    smallest, or the file's own order if its tool has one (CVAT's z-order; labelme, Supervisely and Label Studio draw the last on
    top)."""
    val_fraction: float = 0.1
    """The share of the images that is set aside as val if no folders or lists define splits; from 0 to below 1."""
    seed: int = 0
    """The random seed; another seed sets other images aside."""
    exif: Exif = "refuse"
    """What to do with images whose EXIF data says that they are to be shown turned. Labels may have been drawn either way, so
    choose: apply turns the image (stored as PNG), ignore takes it as it is stored, refuse reports an error."""
    name: str = NAME
    """The name of the data set."""
    license: Annotated[str, tyro.conf.arg(aliases=("--licence",))] = "not stated"
    """The terms of the images and labels, for dataset.json."""
    index: Path | None = None
    """The folder for annotations sorted by image, which are made once and kept. Default: a folder kiloseg beside them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path is not None:
            if self.images is not None or self.masks is not None or self.annotations is not None:
                raise ValueError("expected only a PATH, or --images with --masks or --annotations")
        else:
            if self.images is None or (self.masks is None) == (self.annotations is None):
                raise ValueError(
                    "expected a PATH that a tool wrote, or --images with either --masks with --names or --annotations"
                )
            if (self.masks is None) != (self.names is None):
                raise ValueError(
                    "--masks and --names go together: masks hold ids and a table their names; annotations contain their "
                    "categories"
                )
        if self.path is None and (self.label_field, self.annotator, self.region_label) != (None, "first", "first"):
            raise ValueError("label_field, annotator and region_label are for a PATH that a tool wrote: leave them out")
        if self.masks is not None and self.unlabeled != "ignore":
            raise ValueError("unlabeled is for annotations: masks have an id at each pixel")
        if self.masks is not None and self.overlap is not None:
            raise ValueError("overlap is for annotations: masks have an id at each pixel")
        if self.annotations is not None and (self.ignore_id is not None or self.reduce_zero_label):
            flag = "reduce_zero_label" if self.ignore_id is None else "ignore_id"
            raise ValueError(f"{flag} is for masks: annotations have no such id")
        if self.ignore_id is not None and not 0 <= self.ignore_id <= MAX_RAW_ID:
            raise ValueError(f"ignore_id = {self.ignore_id}: expected 0 to {MAX_RAW_ID}")
        if self.tile is not None and self.tile < SMALLEST_TILE:
            raise ValueError(f"tile = {self.tile}: expected at least {SMALLEST_TILE} pixels")
        if len(self.columns) not in (0, 2):
            raise ValueError(f"columns = {' '.join(self.columns)}: expected the column of images and that of masks")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction = {self.val_fraction}: expected 0 to below 1")
        parse_splits(self.splits)

    @property
    def given_splits(self) -> dict[str, str]:
        """Maps folders to splits, as given by --splits."""
        return parse_splits(self.splits)
