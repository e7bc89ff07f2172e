"""Reads "CVAT for images 1.1": one annotations.xml with polygons, boxes, ellipses and masks; z_order says what is on top.

    <image name="a.jpg" width="6" height="4"><polygon label="cat" points="1,1;3,1;3,3" z_order="0"/></image>

It is read as a stream, one image at a time. datumaro reads it too, into objects in memory, and leaves the order of overlaps to the
caller; supervision does not read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from common.coco_json import Image
from common.images import is_image
from common.polygons import box, ellipse, placed
from folders.annotations import Record, RegionSource
from folders.coco_files import ImageFinder
from folders.splits import usual_split
from kiloseg.storage.errors import DataError


def is_cvat(path: Path) -> bool:
    """Whether an xml file is CVAT's, by its beginning. One with a document type is not, since that may expand without limit."""
    with path.open("rb") as file:
        head = file.read(4096)
    return b"<annotations>" in head and b"<!DOCTYPE" not in head and b"<!ENTITY" not in head


def cvat_source(root: Path, xmls: Mapping[str, Path], files: list[str], given: Mapping[str, str]) -> RegionSource:
    """Returns the annotations of files by split (or of one under ""), with images below `root`."""

    def records() -> Iterator[Record]:
        finder = ImageFinder(root, files)
        for split, xml in xmls.items():
            yield from read_cvat(xml, finder, split, given)

    first = next(iter(xmls.values()))
    images = [file for file in files if is_image(file)]
    return RegionSource(
        root=root, files=list(xmls.values()), records=records, overlap="last", stem=first.stem, images=images
    )


def read_cvat(path: Path, finder: ImageFinder, split: str, given: Mapping[str, str]) -> Iterator[Record]:
    """Yields each image with its regions, from the bottom of z_order to the top.

    An image of a subset whose name is no split and is not among `given`, such as CVAT's default, has no split.

    Raises:
        DataError: The xml is not well-formed, or an element lacks what its kind requires.
    """
    try:
        for number, (_, element) in enumerate(ElementTree.iterparse(path, events=("end",))):  # noqa: S314 # see is_cvat
            if element.tag == "track":
                raise DataError(f"{path} holds tracks of a video: export the frames with 'CVAT for images 1.1'")
            if element.tag == "image":
                yield _record(element, path, finder, number, split, given)
                element.clear()
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not a complete XML file ({error}): export it again") from error


def _record(
    element: ElementTree.Element, path: Path, finder: ImageFinder, number: int, split: str, given: Mapping[str, str]
) -> Record:
    name = element.get("name", "")
    try:
        height, width = int(element.attrib["height"]), int(element.attrib["width"])
        subset = split or usual_split(element.get("subset", ""), given) or ""
        image = finder.find(Image(number, height, width, name), subset, path, "images")
        shapes = sorted(
            (shape for shape in element if "label" in shape.attrib), key=lambda s: int(s.get("z_order", "0"))
        )
        return Record(
            image=image,
            split=subset,
            height=height,
            width=width,
            category_ids=[shape.attrib["label"].strip() for shape in shapes if shape.tag != "tag"],
            segmentations=[_region(shape, height, width) for shape in shapes if shape.tag != "tag"],
        )
    except (KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: image {name!r} has an element that cannot be read ({type(error).__name__}: {error}): export it again"
        ) from error


def _region(shape: ElementTree.Element, height: int, width: int) -> bytes:
    get = shape.attrib
    if shape.tag == "polygon":
        points = [[float(value) for value in point.split(",")] for point in get["points"].split(";") if point.strip()]
        return json.dumps([points]).encode()
    if shape.tag == "box":
        corners = [float(get[name]) for name in ("xtl", "ytl", "xbr", "ybr")]
        if float(get.get("rotation", "0")):
            return json.dumps([_turned(corners, float(get["rotation"]))]).encode()
        return json.dumps([box(*corners)]).encode()
    if shape.tag == "ellipse":
        x, y, radius_x, radius_y = (float(get[name]) for name in ("cx", "cy", "rx", "ry"))
        return json.dumps([ellipse(x, y, radius_x, radius_y, float(get.get("rotation", "0")))]).encode()
    if shape.tag == "mask":
        return _mask(shape, height, width)
    return b"[]"  # points, lines, cuboids and skeletons have no inside


def _turned(corners: list[float], degrees: float) -> list[float]:
    """Turns a box clockwise around its center."""
    left, top, right, bottom = corners
    x, y = (left + right) / 2, (top + bottom) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points: list[float] = []
    for at_x, at_y in ((left, top), (right, top), (right, bottom), (left, bottom)):
        points += [x + (at_x - x) * cos - (at_y - y) * sin, y + (at_x - x) * sin + (at_y - y) * cos]
    return points


def _mask(shape: ElementTree.Element, height: int, width: int) -> bytes:
    """Converts CVAT's runs, which go row by row inside the mask's box, zeros first, to COCO's, which go column by column."""
    left, top, box_width, box_height = (int(shape.attrib[name]) for name in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.attrib["rle"].split(",")]
    if not (0 < box_width <= width and 0 < box_height <= height):
        raise ValueError(f"a mask of {box_width} x {box_height} in an image of {width} x {height}")
    if min(runs) < 0 or sum(runs) != box_width * box_height:
        raise ValueError(f"runs of {sum(runs)} pixels in a mask of {box_width} x {box_height}")
    inside = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(box_height, box_width)
    return placed(inside, left, top, height, width)
