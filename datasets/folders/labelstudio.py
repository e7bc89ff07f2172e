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

SHAPES = ("polygon", "rectangle", "ellipse", "brush")
UPLOADED = re.compile(r"^[0-9a-f]{8}-")
"""Label Studio puts this before the name of an uploaded file."""


def is_labelstudio(path: Path) -> bool:
    """Whether a json file is an export of Label Studio, by its beginning."""
    with path.open("rb") as file:
        text = file.read(HEAD)
    return text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") and b'"annotations"' in text and b'"result"' in text


def labelstudio_source(
    root: Path, paths: Mapping[str, Path], files: list[str], annotator: str = "first", region_label: str = "first"
) -> RegionSource:
    """Returns the annotations of exports by split (or of one under "").

    Args:
        root: the folder of the images.
        paths: the exports.
        files: all files below the root, relative to it.
        annotator: whose annotation counts if a task has several: "first", "last", or the id or email of a person.
        region_label: which label counts if a region has several: "first" or "last".

    Raises:
        DataError: A file is not an export, or no task has an annotation by that person.
    """
    images = [file for file in files if is_image(file)]
    there = Ends(images)
    tasks = {split: read_json(path) for split, path in paths.items()}

    def records() -> Iterator[Record]:
        for split, path in paths.items():
            for record in read_labelstudio(path, tasks[split], there, annotator, region_label):
                yield dataclasses.replace(record, split=split)

    first = next(iter(paths.values()))
    every = [task for listed in tasks.values() for task in listed if isinstance(task, dict) and "annotations" in task]
    if annotator not in ("first", "last") and not any(
        annotator in _people(entry) for task in every for entry in _done(task)
    ):
        people = sorted({person for task in every for entry in _done(task) for person in _people(entry)})
        raise DataError(
            f"{first}: no annotation is by {annotator}: expected --annotator first, last or {', '.join(people)}"
        )
    several = sum(len(_done(task)) - 1 for task in every if len(_done(task)) > 1)
    chosen = (entry for task in every for entry in _chosen(task, annotator))
    labels = sum(max(len(_labels(found)) - 1, 0) for entry in chosen for found in entry.get("result") or [])
    left_out = {
        "images without an annotation that counts": sum(not _chosen(task, annotator) for task in every),
        f"annotations of images that have several (--annotator {annotator})": several,
        f"further labels of regions that have several (--region-label {region_label})": labels,
    }
    return RegionSource(
        root=root,
        files=list(paths.values()),
        records=records,
        overlap="last",
        stem=first.stem,
        settings={"annotator": annotator, "region_label": region_label},
        images=images,
        left_out={kind: number for kind, number in left_out.items() if number},
    )


def _done(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the annotations of a task that were not canceled."""
    return [entry for entry in task.get("annotations") or [] if not entry.get("was_cancelled")]


def _people(entry: dict[str, Any]) -> list[str]:
    """Returns the id and email of who made an annotation, as far as it says."""
    person = entry.get("completed_by")
    known = [person.get("id"), person.get("email")] if isinstance(person, dict) else [person]
    return [str(value) for value in known if value is not None]


def _chosen(task: dict[str, Any], annotator: str) -> list[dict[str, Any]]:
    """Returns the annotation of a task that counts, or nothing: ground truth before others."""
    done = _done(task)
    if annotator not in ("first", "last"):
        done = [entry for entry in done if annotator in _people(entry)]
    done = [entry for entry in done if entry.get("ground_truth")] or done
    return done[-1:] if annotator == "last" else done[:1]


def _labels(found: dict[str, Any]) -> list[str]:
    """Returns the labels of a region; none for results that are not regions."""
    if not isinstance(found, dict):
        return []
    kind = str(found.get("type", ""))
    labels = found["value"].get(kind) if kind.endswith("labels") and isinstance(found.get("value"), dict) else None
    return [str(label).strip() for label in labels] if isinstance(labels, list) else []


def read_labelstudio(
    path: Path, tasks: list[Any], images: Ends, annotator: str = "first", region_label: str = "first"
) -> Iterator[Record]:
    """Yields each task that has an annotation that counts, with its regions.

    Raises:
        DataError: The structure differs, or an image does not exist.
    """
    for number, task in enumerate(tasks):
        try:
            shown = next(
                str(value) for value in task["data"].values() if isinstance(value, str) and _is_image_url(value)
            )
            entries = _chosen(task, annotator)
            if not entries:  # it was skipped, which is not the same as an image without objects
                continue
            results = _with_labels(entries[0]["result"])
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
                category_ids=[_labels(found)[0 if region_label == "first" else -1] for found in results],
                segmentations=[_region(found, height, width) for found in results],
            )
        except DataError:
            raise
        except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: task {number} of the list cannot be read ({type(error).__name__}: {error}): expected Label Studio's "
                "JSON export; export it again"
            ) from error


def _with_labels(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the regions of an annotation; one whose labels are a result of their own, with the same id, gets them."""
    apart = {
        found["id"]: found["value"]["labels"] for found in results if found.get("type") == "labels" and "id" in found
    }
    joined = []
    for found in results:
        kind = str(found.get("type", ""))
        if kind in SHAPES and found.get("id") in apart:
            found = {**found, "type": f"{kind}labels", "value": {**found["value"], f"{kind}labels": apart[found["id"]]}}
        if str(found["type"]).endswith("labels") and found["type"] != "labels":
            joined.append(found)
    return joined


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
