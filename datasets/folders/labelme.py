"""Reads labelme's json, one beside each image: polygons, rectangles, circles and masks; the last in the file lies on top.

    {"imagePath": "a.jpg", "imageHeight": 4, "imageWidth": 6,
     "shapes": [{"label": "cat", "points": [[x, y], ...], "shape_type": "polygon"}]}

What is labeled __ignore__ is ignored, and _background_ is the background, as in labelme's converters. Format: labelme's own
LabelFile. supervision does not read it; datumaro reads it into objects in memory and takes class ids in the order in which it
meets them.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from common.images import composed
from common.polygons import box, ellipse, placed
from folders.annotations import BACKGROUND, Record, RegionSource
from folders.coco_files import HEAD
from kiloseg.storage.errors import DataError


def is_labelme(path: Path) -> bool:
    """Whether a json file is one of labelme's, by its beginning."""
    with path.open("rb") as file:
        text = file.read(HEAD)
    return b'"shapes"' in text and (b'"imagePath"' in text or b'"version"' in text)


def labelme_source(root: Path, jsons: list[str], images: list[str]) -> RegionSource:
    """Returns the annotations of json files below `root`; files and images are given relative to it."""
    there = {composed(str(PurePosixPath(image).with_suffix(""))): image for image in images}
    there |= {composed(image): image for image in images}
    return RegionSource(
        root=root,
        files=[root / file for file in jsons],
        records=lambda: (read_labelme(root, file, there) for file in jsons),
        overlap="last",
        left_out={"images without a json file": len(images) - len(jsons)} if len(images) > len(jsons) else {},
        ignored="__ignore__",
        stem="labelme",
    )


def read_labelme(root: Path, file: str, images: dict[str, str]) -> Record:
    """Returns the image of a json file with its regions.

    Raises:
        DataError: The structure differs, there is no such image, or a shape's points do not fit its kind.
    """
    path = root / file
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        image = find_image(file, str(content.get("imagePath") or ""), images)
        if image is None:
            raise DataError(
                f"{path}: no image {content.get('imagePath')!r} beside it, nor one of its own name: restore it"
            )
        shapes = content["shapes"]
        height, width = content.get("imageHeight") or 0, content.get("imageWidth") or 0
        regions = [_region(shape, height, width, f"{path}: shape {number}") for number, shape in enumerate(shapes)]
        return Record(
            image=image,
            height=int(height),
            width=int(width),
            category_ids=[
                BACKGROUND if (name := str(shape["label"]).strip()) == "_background_" else name for shape in shapes
            ],
            segmentations=regions,
        )
    except DataError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not an annotation of labelme ({type(error).__name__}: {error}): expected shapes with label, points and "
            "shape_type; restore or remove it"
        ) from error


def find_image(file: str, named: str, images: dict[str, str]) -> str | None:
    """Finds the image that the json file names, which may be a path of another machine, or else the one with the file's own
    name."""
    folder = PurePosixPath(file).parent
    name = composed(named.replace("\\", "/"))
    for candidate in (folder / name, folder / PurePosixPath(name).name) if name else ():
        joined = PurePosixPath(*_flat(candidate)).as_posix()
        if joined in images:
            return images[joined]
    return images.get(composed(str(PurePosixPath(file).with_suffix(""))))


def _flat(path: PurePosixPath) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return parts


def _region(shape: dict[str, Any], height: int, width: int, where: str) -> bytes:
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind in ("polygon", "oriented_rectangle", "rotation") or (kind == "rectangle" and len(points) == 4):
        return json.dumps([points]).encode()
    if kind in ("rectangle", "circle", "mask") and len(points) != 2:
        raise DataError(f"{where}: a {kind} of {len(points)} points: expected 2; correct it in labelme")
    if kind == "rectangle":
        return json.dumps([box(*points[0], *points[1])]).encode()
    if kind == "circle":
        (x, y), (on_x, on_y) = points
        radius = float(np.hypot(on_x - x, on_y - y))
        return json.dumps([ellipse(x, y, radius, radius)]).encode()
    if kind == "mask":
        return _mask(shape, height, width, where)
    return b"[]"  # points and lines have no inside


def _mask(shape: dict[str, Any], height: int, width: int, where: str) -> bytes:
    """Returns the mask, a PNG of the pixels between two corners, both inclusive."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as opened:
            part = np.asarray(opened.convert("L")) > 0
    except (binascii.Error, KeyError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: its mask cannot be read ({error}); draw it again") from error
    left, top = (round(value) for value in shape["points"][0])
    try:
        return placed(part, left, top, height, width)
    except ValueError as error:
        raise DataError(f"{where}: {error}; draw it again") from error
