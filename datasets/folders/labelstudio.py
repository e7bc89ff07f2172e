"""Reads Label Studio's json export: a list of tasks with polygons, rectangles, ellipses and brush strokes; last on top.

    [{"data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"result": [
        {"type": "polygonlabels", "original_width": 6, "original_height": 4,
         "value": {"points": [[x, y], ...], "polygonlabels": ["cat"]}}]}]}]

Coordinates are in percent of the image. A brush stroke is run-length coded bit by bit (thi.ng/rle-pack), with four channels per
pixel, of which the last counts. Neither datumaro nor supervision reads brush strokes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from common.images import composed, is_image
from common.polygons import ellipse, rle_text
from folders.annotations import Record, RegionSource
from folders.coco_files import HEAD
from folders.json_files import read_json
from folders.lists import Ends
from kiloseg.storage.errors import DataError

UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""Label Studio puts this before the name of an uploaded file."""


def is_labelstudio(path: Path) -> bool:
    """Whether a json file is an export of Label Studio, by its beginning."""
    with path.open("rb") as file:
        text = file.read(HEAD)
    return text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") and b'"annotations"' in text and b'"result"' in text


def labelstudio_source(root: Path, paths: Mapping[str, Path], files: list[str]) -> RegionSource:
    """Returns the annotations of exports by split (or of one under ""); images are below `root` and given relative to it."""
    images = [file for file in files if is_image(file)]
    there = Ends(images)

    def records() -> Iterator[Record]:
        for split, path in paths.items():
            for record in read_labelstudio(path, there):
                yield dataclasses.replace(record, split=split)

    first = next(iter(paths.values()))
    return RegionSource(
        root=root, files=list(paths.values()), records=records, overlap="last", stem=first.stem, images=images
    )


def read_labelstudio(path: Path, images: Ends) -> Iterator[Record]:
    """Yields each task with the regions of its first annotation that was not canceled.

    Raises:
        DataError: The structure differs, or an image does not exist.
    """
    tasks = read_json(path)
    for number, task in enumerate(tasks):
        try:
            shown = next(
                str(value) for value in task["data"].values() if isinstance(value, str) and _is_image_url(value)
            )
            done = [entry for entry in task["annotations"] if not entry.get("was_cancelled")]
            results = [
                found for found in (done[0]["result"] if done else []) if str(found.get("type", "")).endswith("labels")
            ]
            where = f"{path}: task {task.get('id', number)}"
            name = _path(shown)
            folder, _, last = name.rpartition("/")
            image = images.find(name) or images.find(f"{folder}/{UPLOADED.sub('', last)}")
            if image is None:
                raise DataError(f"{where} belongs to {shown!r}, whose image is missing or ambiguous: export it too")
            if any(found.get("image_rotation") for found in results):
                raise DataError(
                    f"{where} was labeled on an image that was turned in Label Studio, and the export does not say whether its "
                    "coordinates are of the turned one: turn the image itself and label it again"
                )
            height = results[0]["original_height"] if results else 0
            width = results[0]["original_width"] if results else 0
            yield Record(
                image=image,
                height=height,
                width=width,
                category_ids=[found["value"][found["type"]][0].strip() for found in results],
                segmentations=[_region(found, height, width) for found in results],
            )
        except DataError:
            raise
        except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: task {number} of the list cannot be read ({type(error).__name__}: {error}): expected Label Studio's "
                "JSON export; export it again"
            ) from error


def _is_image_url(text: str) -> bool:
    return is_image(_path(text))


def _path(url: str) -> str:
    parts = urlsplit(url)
    local = re.search(r"(?:^|&)d=([^&]+)", parts.query)  # /data/local-files/?d=folder/a.jpg
    return composed(unquote(local[1] if local else parts.path))


def _region(found: dict[str, Any], height: int, width: int) -> bytes:
    value = found["value"]
    if found["type"] == "polygonlabels":
        return json.dumps([[[x * width / 100, y * height / 100] for x, y in value["points"]]]).encode()
    if found["type"] == "rectanglelabels":
        left, top = value["x"] * width / 100, value["y"] * height / 100
        right, down = value["width"] * width / 100, value["height"] * height / 100
        turned = math.radians(value.get("rotation") or 0)  # clockwise around the left upper corner
        cos, sin = math.cos(turned), math.sin(turned)
        corners = [
            [left + x * cos - y * sin, top + x * sin + y * cos]
            for x, y in ((0, 0), (right, 0), (right, down), (0, down))
        ]
        return json.dumps([corners]).encode()
    if found["type"] == "ellipselabels":
        middle = value["x"] * width / 100, value["y"] * height / 100
        radii = value["radiusX"] * width / 100, value["radiusY"] * height / 100
        return json.dumps([ellipse(*middle, *radii, value.get("rotation") or 0)]).encode()
    if found["type"] == "brushlabels":
        channels = unpack_brush(value["rle"], height * width * 4)
        return rle_text(np.asfortranarray((channels.reshape(height, width, 4)[..., 3] > 0).astype(np.uint8)))
    return b"[]"


def unpack_brush(data: list[int], size: int) -> np.ndarray:
    """Returns the bytes of a brush stroke: uint8 of length `size`.

    After 32 bits of length, 5 bits of word size minus one, and four sizes of run lengths (4 bits each, minus one), there are runs:
    a bit that says whether one word is repeated, 2 bits that choose the size of the length, the length minus one, and words.

    Raises:
        ValueError: The length differs, or the data ends too early.
    """
    bits = np.unpackbits(np.array(data, np.uint8))
    place = 0

    def read(count: int) -> int:
        nonlocal place
        if place + count > len(bits):
            raise ValueError("a brush stroke that ends too early")
        value = int.from_bytes(np.packbits(bits[place : place + count]).tobytes(), "big") >> (-count % 8)
        place += count
        return value

    if (length := read(32)) != size:
        raise ValueError(f"a brush stroke of {length} bytes, expected {size}: four per pixel")
    word = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    out = np.zeros(size, np.uint8)
    at = 0
    while at < size:
        repeated = read(1)
        run = min(read(sizes[read(2)]) + 1, size - at)
        if repeated:
            out[at : at + run] = read(word) & 255
        else:
            for number in range(at, at + run):
                out[number] = read(word) & 255
        at += run
    return out
