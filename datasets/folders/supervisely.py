"""Reads Supervisely's projects: meta.json with classes, and a json in DATASET/ann per image of DATASET/img; last on top.

    {"size": {"height": 4, "width": 6},
     "objects": [{"classTitle": "cat", "geometryType": "polygon", "points": {"exterior": [[x, y], ...], "interior": []}},
                 {"classTitle": "cat", "geometryType": "bitmap", "bitmap": {"data": BASE64, "origin": [x, y]}}]}

Format: Supervisely's documentation of its annotation format. Neither datumaro nor supervision keeps the order of overlaps
and holes of polygons in a class map.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from common.images import composed
from common.polygons import box, placed, without_holes
from folders.annotations import Record, RegionSource
from folders.json_files import read_json
from kiloseg.storage.errors import DataError

LARGEST_BITMAP = 2**26
"""The most bytes of a PNG that a bitmap may hold when it is unpacked."""


def supervisely_source(root: Path, anns: list[str], images: list[str]) -> RegionSource:
    """Returns the annotations of json files below `root`; files and images are given relative to it."""
    there = {composed(image): image for image in images}
    classes = [str(entry["title"]).strip() for entry in read_json(root / "meta.json")["classes"]]
    return RegionSource(
        root=root,
        files=[root / "meta.json", *(root / file for file in anns)],
        records=lambda: (read_supervisely(root, file, there) for file in anns),
        classes=lambda: {name: name for name in classes},
        overlap="last",
        images=images,
        stem="supervisely",
    )


def image_of(ann: str) -> str:
    """Returns the image of an annotation file: DATASET/ann/a.jpg.json belongs to DATASET/img/a.jpg."""
    path = PurePosixPath(ann)
    return composed(str(path.parent.parent / "img" / path.name.removesuffix(".json")))


def read_supervisely(root: Path, file: str, images: dict[str, str]) -> Record:
    """Returns the image of a json file with its regions; raises DataError."""
    path = root / file
    image = images.get(image_of(file))
    if image is None:
        raise DataError(f"{path}: its image {image_of(file)} is missing: restore it")
    content = read_json(path)
    try:
        height, width = int(content["size"]["height"]), int(content["size"]["width"])
        objects = content["objects"]
        return Record(
            image=image,
            height=height,
            width=width,
            category_ids=[str(found["classTitle"]).strip() for found in objects],
            segmentations=[_region(found, height, width) for found in objects],
        )
    except (AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError, zlib.error) as error:
        raise DataError(
            f"{path} is not an annotation of Supervisely ({type(error).__name__}: {error}): expected size and objects with "
            "classTitle and geometryType; download it again"
        ) from error


def _region(found: dict[str, Any], height: int, width: int) -> bytes:
    kind = found["geometryType"]
    if kind == "polygon":
        return without_holes(found["points"]["exterior"], found["points"].get("interior") or [], height, width)
    if kind == "rectangle":
        return json.dumps([box(*found["points"]["exterior"][0], *found["points"]["exterior"][1])]).encode()
    if kind == "bitmap":
        left, top = found["bitmap"]["origin"]
        return placed(_bitmap(found["bitmap"]["data"]), int(left), int(top), height, width)
    return b"[]"  # points and lines have no inside


def _bitmap(text: str) -> np.ndarray:
    try:
        unpacked = zlib.decompressobj().decompress(base64.b64decode(text), LARGEST_BITMAP)
    except binascii.Error as error:
        raise ValueError(f"a bitmap that is not base64: {error}") from error
    with Image.open(io.BytesIO(unpacked), formats=["PNG"]) as opened:
        # The tool writes the mask into all channels, including alpha.
        band = opened.getchannel("A") if "A" in opened.getbands() else opened.convert("L")
        return (np.asarray(band) > 0).astype(np.uint8)
