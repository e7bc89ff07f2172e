"""Reads Open Images: a csv with a line per object, whose mask is a PNG of its own; of several objects the smallest lies on top.

    train-annotations-object-segmentation.csv     MaskPath,ImageID,LabelName,BoxID,...
    train-masks/0a1b_m01yrx_5d.png                not zero where the object is, often of another size than the image
    class-descriptions.csv                        /m/01yrx,Cat

FiftyOne's OpenImagesV6Dataset has the same in SPLIT/labels/segmentations.csv, SPLIT/labels/masks and SPLIT/metadata/classes.csv.
datumaro reads it with one mask per object in memory and reads all masks before the first image; supervision does not read it.
"""

from __future__ import annotations

import csv
import functools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from common.class_names import read_text
from common.coco_json import Image as ListedImage
from common.images import Exif, composed, image_size
from common.polygons import rle_text
from folders.annotations import Record, RegionSource
from folders.coco_files import ImageFinder
from folders.splits import split_in_name, usual_split
from kiloseg.storage.errors import DataError

COLUMNS = {"MaskPath", "ImageID", "LabelName"}
NAMES = ("classes", "segmentation_classes")
"""Tables of names are called so by FiftyOne; those of Open Images have class-descriptions in their name."""


def is_open_images(path: Path) -> bool:
    """Whether a csv lists the masks of objects, by its first line."""
    with path.open("rb") as file:
        header = file.readline(1000).decode("utf-8-sig", errors="replace")
    return set(header.strip().split(",")) >= COLUMNS


def open_images_source(
    root: Path, tables: list[str], files: list[str], given: Mapping[str, str], exif: Exif, names: Path | None
) -> RegionSource:
    """Returns the objects of csv files below `root`.

    Args:
        root: the folder of all files.
        tables: the csv files with objects, relative to it.
        files: all files, relative to it.
        given: what the user said about splits.
        exif: what to do with images that are to be shown turned.
        names: a table of names that the user gave, with a column of labels and one of names.

    Raises:
        DataError: There is no table of names.
    """
    described = names or _descriptions(root, files)
    pngs: dict[str, list[str]] = {}
    for file in files:
        if file.lower().endswith(".png"):
            pngs.setdefault(composed(file.rpartition("/")[2]), []).append(file)
    return RegionSource(
        root=root,
        files=[described, *(root / table for table in tables)],
        records=lambda: _records(root, tables, files, pngs, given, exif),
        classes=lambda: _used(described, root, tables),
        stem="open-images",
        read_region=functools.partial(read_mask, root=root.resolve()),
    )


def _descriptions(root: Path, files: list[str]) -> Path:
    found = [file for file in files if file.endswith(".csv") and "class-descriptions" in file.rpartition("/")[2]]
    found = found or [file for file in files if file.endswith(".csv") and Path(file).stem in NAMES]
    if not found:
        raise DataError(
            f"{root} holds masks of Open Images but no class-descriptions.csv: expected the names of its labels; put it there, "
            "or name it with --names"
        )
    return root / found[0]


def _used(described: Path, root: Path, tables: list[str]) -> dict[str, str]:
    """Maps the labels that objects have to names, in the order of the table of names."""
    rows = [row for row in csv.reader(read_text(described).splitlines()) if row]
    wrong = next((number for number, row in enumerate(rows, start=1) if len(row) < 2), None)
    if wrong is not None:
        raise DataError(f"{described}: line {wrong} has one column: expected a label such as /m/01yrx and its name")
    names = {row[0].strip(): row[1].strip() for row in rows if row[0] != "LabelName"}
    used = {row["LabelName"].strip() for table in tables for row in _rows(root / table)}
    unknown = sorted(used - names.keys())
    if unknown:
        raise DataError(
            f"{described} has no name for label {unknown[0]}, nor for {len(unknown) - 1} others that objects have: restore it"
        )
    return {label: name for label, name in names.items() if label in used}


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            if not all(row.get(column) for column in COLUMNS):
                raise DataError(f"{path}: line {number} lacks {' or '.join(sorted(COLUMNS))}: restore it")
            yield row


def _records(
    root: Path,
    tables: list[str],
    files: list[str],
    pngs: Mapping[str, list[str]],
    given: Mapping[str, str],
    exif: Exif,
) -> Iterator[Record]:
    """Yields each image that has objects; raises DataError."""
    masks = {file for found in pngs.values() for file in found}
    finder = ImageFinder(root, [file for file in files if file not in masks])
    for table in tables:
        split = split_in_name(Path(table).stem, given) or next(
            (s for part in reversed(Path(table).parts[:-1]) if (s := usual_split(part, given))), ""
        )
        objects: dict[str, list[tuple[str, str]]] = {}
        for row in _rows(root / table):
            label = sys.intern(row["LabelName"].strip())
            objects.setdefault(row["ImageID"], []).append((label, row["MaskPath"]))
        for number, (image_id, labeled) in enumerate(objects.items()):
            listed = ListedImage(number, file_name=f"{image_id}.jpg")
            image = finder.find(listed, split, root / table, "")
            height, width = image_size(root / image, exif)
            yield Record(
                image=image,
                split=split,
                height=height,
                width=width,
                category_ids=[label for label, _ in labeled],
                segmentations=[
                    json.dumps({"png": _png(mask, root / table, split, pngs)}).encode() for _, mask in labeled
                ],
            )


def _png(name: str, path: Path, split: str, pngs: Mapping[str, list[str]]) -> str:
    found = pngs.get(composed(name.replace("\\", "/").rpartition("/")[2]), [])
    if len(found) > 1:
        found = [file for file in found if split and any(usual_split(part) == split for part in file.split("/"))]
    if len(found) != 1:
        raise DataError(
            f"{path} lists mask {name!r}, which exists {len(found)} times: expected one PNG of that name below {path.parent}; "
            "unpack all archives of masks"
        )
    return found[0]


def read_mask(text: bytes, height: int, width: int, *, root: Path) -> bytes:
    """Returns the RLE, as json text, of the PNG that `text` names, brought to the size of its image; raises DataError."""
    path = root / json.loads(text)["png"]
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            gray = opened.convert("L").resize((width, height), Image.Resampling.NEAREST)
            mask_HW = np.asarray(gray) > 0
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected the mask of an object; restore it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded ({error}): expected the mask of an object; restore it") from error
    return rle_text(np.asfortranarray(mask_HW.astype(np.uint8)))
