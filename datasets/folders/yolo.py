"""Reads YOLO's segmentation format: data.yaml with names, and per image a txt with a line "class x y x y ..." per polygon.

    images/train/a.jpg  labels/train/a.txt            coordinates are shares of the width and height
    train/images/a.jpg  train/labels/a.txt

Format: Ultralytics' documentation of segmentation data sets. A line of five numbers is a box, which has no shape here.
supervision reads it too, but decodes every image and keeps one mask per object in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from common.class_names import read_names
from common.images import Exif, composed, image_size
from folders.annotations import Record, RegionSource
from kiloseg.storage.errors import DataError


def yolo_source(root: Path, table: Path, texts: list[str], images: list[str], exif: Exif) -> RegionSource:
    """Returns the polygons of the txt files below `root`; files and images are given relative to it; `table` holds the names."""
    return RegionSource(
        root=root,
        files=[table, *(root / file for file in texts)],
        records=lambda: read_yolo(root, texts, images, exif),
        classes=lambda: {class_id: name for class_id, name in sorted(read_names(table).items()) if name},
        stem="yolo",
    )


def label_of(image: str) -> str:
    """Returns the txt file of an image: the last folder images becomes labels, as in Ultralytics."""
    *folders, name = image.split("/")
    for number in reversed(range(len(folders))):
        if folders[number] == "images":
            folders[number] = "labels"
            break
    return composed("/".join([*folders, str(Path(name).with_suffix(".txt"))]))


def read_yolo(root: Path, texts: list[str], images: list[str], exif: Exif) -> Iterator[Record]:
    """Yields each image with its polygons; an image without a txt file has no objects.

    Raises:
        DataError: A line is something else; the message names the file and the line.
    """
    there = {composed(text): text for text in texts}
    for image in images:
        height, width = image_size(root / image, exif)
        ids, segmentations = [], []
        text = there.get(label_of(image)) or there.get(composed(str(Path(image).with_suffix(".txt"))))
        lines = (root / text).read_text(encoding="utf-8-sig").splitlines() if text else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                first, *numbers = line.split()
                class_id, values = int(first), [float(value) for value in numbers]
                if len(values) != 4 and (len(values) < 6 or len(values) % 2):
                    raise ValueError(f"{len(values)} coordinates")
                if any(not -0.5 <= value <= 1.5 for value in values):
                    raise ValueError("coordinates that are not fractions of the image's size")
            except ValueError as error:
                raise DataError(
                    f"{root / str(text)}: line {number} cannot be read ({error}): expected a class id and x y x y ... from 0 to "
                    "1; correct it"
                ) from error
            ids.append(class_id)
            points = [value * (height if place % 2 else width) for place, value in enumerate(values)]
            segmentations.append(json.dumps([points] if len(points) > 4 else []).encode())
        yield Record(image=image, height=height, width=width, category_ids=ids, segmentations=segmentations)
