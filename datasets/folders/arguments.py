"""What a user says about a folder of own images, and how it is read: splits, keys, images that are turned."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps

from common.label_table import MAX_RAW_ID
from common.pairs import order, read_image, safe_key
from kiloseg.data.writing.build import Output
from kiloseg.storage.errors import DataError

NAME = "folder"
VERSION = 1
"""Raised with every change that changes a sample."""

Exif = Literal["refuse", "apply", "ignore"]
ORIENTATION = 0x0112
"""EXIF tag that says how an image is to be turned; 1 is not at all."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Output):
    """Builds a data set from your own images, with masks or with COCO or LVIS style annotations."""

    images: Path
    """Folder of JPEG and PNG images, at any depth; subfolders train and val are the splits, if there are any."""
    masks: Path | None = None
    """Folder of masks in the same subfolders under the same names, ending in .png; needs --names."""
    names: Path | None = None
    """Class names for masks: csv with the columns id and name (or name alone: ids count from 0), or json: a list of names,
    or an object of names by id. Class ids are the ranks of these ids. An id with an empty name is ignored."""
    annotations: Path | None = None
    """COCO or LVIS style json, or a folder with train.json and val.json. Image files are file_name, or the last two parts
    of coco_url, inside --images (or inside its subfolder of the split)."""
    ignore_id: int | None = None
    """Id in masks that means ignore. Default: 255 in masks of 8 bits, unless --names has it; 65535 always is."""
    unlabelled: Literal["ignore", "background"] = "ignore"
    """What pixels outside all annotations are. background: class 0 of that name, before all others. ignore: they are
    neither trained on nor counted. Masks say so themselves."""
    val_fraction: float = 0.1
    """Share of the images that is set aside as val, where no folders train and val tell; from 0 to below 1."""
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
        if (self.masks is None) == (self.annotations is None):
            raise ValueError("expected either --masks with --names or --annotations")
        if (self.masks is None) != (self.names is None):
            raise ValueError(
                "--masks and --names go together: masks hold ids and a table their names; annotations bring their "
                "categories along"
            )
        if self.masks is not None and self.unlabelled != "ignore":
            raise ValueError("unlabelled is for annotations: masks have an id at each pixel")
        if self.annotations is not None and self.ignore_id is not None:
            raise ValueError("ignore_id is for masks: annotations have no such id")
        if self.ignore_id is not None and not 0 <= self.ignore_id <= MAX_RAW_ID:
            raise ValueError(f"ignore_id = {self.ignore_id}: expected 0 to {MAX_RAW_ID}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction = {self.val_fraction}: expected 0 to below 1")


def keys_of(files: Iterable[str]) -> dict[str, str]:
    """A key per image file, from its path without suffix.

    Raises:
        DataError: two files that would have the same key.
    """
    files_by_key: dict[str, str] = {}
    for file in files:
        key = safe_key(str(Path(file).with_suffix("")))
        if key in files_by_key:
            raise DataError(f"images {files_by_key[key]} and {file} would both be sample {key}: rename one of them")
        files_by_key[key] = file
    return {file: key for key, file in files_by_key.items()}


def divide(keys: Mapping[str, str], val_fraction: float, seed: int) -> dict[str, list[str]]:
    """Files into train and val: at least one file for each, unless the fraction is 0."""
    files = sorted(keys, key=lambda file: order(f"{seed}/{keys[file]}"))
    num_val = min(max(round(val_fraction * len(files)), 1), len(files) - 1) if val_fraction > 0 else 0
    splits = {"train": files[num_val:], "val": files[:num_val]}
    return {split: chosen for split, chosen in splits.items() if chosen}


def read_turned(path: Path, *, exif: Exif) -> bytes:
    """The bytes of a JPEG or PNG, turned as its EXIF data says if `exif` says so.

    Raises:
        DataError: as `read_image`, or a turned image where `exif` is refuse.
    """
    data = read_image(path)
    if exif == "ignore":
        return data
    with Image.open(io.BytesIO(data)) as image:
        if image.getexif().get(ORIENTATION, 1) == 1:
            return data
        if exif == "refuse":
            raise DataError(
                f"{path} is to be shown turned, says its EXIF data: expected to be told whether its labels were drawn on the "
                "image as it is shown (--exif apply) or as it is stored (--exif ignore)"
            )
        buffer = io.BytesIO()
        ImageOps.exif_transpose(image).save(buffer, "PNG")  # without loss, unlike a second JPEG
        return buffer.getvalue()
