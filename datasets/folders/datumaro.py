"""Reads datumaro's own json: a file per subset in annotations/, images in images/SUBSET/; z_order says what is on top.

    {"dm_format_version": "1.0", "categories": {"label": {"labels": [{"name": "cat"}]}},
     "items": [{"id": "a", "image": {"path": "a.jpg", "size": [4, 6]},
                "annotations": [{"type": "polygon", "label_id": 0, "points": [x, y, ...], "z_order": 0}]}]}

datumaro itself would hold every annotation as an object with a mask.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.images import is_image
from common.polygons import ellipse
from folders.annotations import Record, RegionSource
from folders.coco_files import HEAD
from folders.json_files import read_json
from folders.lists import Ends
from kiloseg.storage.errors import DataError

REGIONS = ("polygon", "mask", "ellipse", "bbox")
"""These kinds are regions; others, such as points or labels of whole images, are not."""


def is_datumaro(path: Path) -> bool:
    """Whether a json file is datumaro's, by its beginning."""
    with path.open("rb") as file:
        text = file.read(HEAD)
    return b'"dm_format_version"' in text or (
        b'"items"' in text and b'"categories"' in text and b'"label_groups"' in text
    )


def datumaro_source(root: Path, paths: dict[str, Path], files: list[str]) -> RegionSource:
    """Returns the annotations of files by split (or of one under ""); raises DataError."""
    contents = {split: read_json(path) for split, path in paths.items()}
    names = {split: _names(content, paths[split]) for split, content in contents.items()}
    first = next(iter(paths))
    for split, others in names.items():
        if others != names[first]:
            raise DataError(
                f"{paths[first]} and {paths[split]} have different labels: expected the same in the same order"
            )
    images = [file for file in files if is_image(file)]
    there = Ends(images)

    def records() -> Iterator[Record]:
        for split, content in contents.items():
            for item in content["items"]:
                yield _record(item, split, paths[split], there)

    return RegionSource(
        root=root,
        files=list(paths.values()),
        records=records,
        classes=lambda: dict(enumerate(names[first])),
        overlap="last",
        images=images,
        stem=f"datumaro-{paths[first].stem}",
    )


def _names(content: Any, path: Path) -> list[str]:
    try:
        return [str(label["name"]) for label in content["categories"]["label"]["labels"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} has no labels under categories ({error}): export it again with its labels") from error


def _record(item: dict[str, Any], split: str, path: Path, images: Ends) -> Record:
    where = f"{path}: item {item.get('id')!r}"
    try:
        named = str((item.get("image") or {}).get("path") or item["id"])
        image = images.find(f"{path.stem}/{named}") or images.find(str(item["id"]))
        if image is None:
            raise DataError(f"{where} belongs to {named!r}, which is missing or ambiguous: export it with --save-media")
        height, width = (item.get("image") or {}).get("size") or (0, 0)
        regions = [found for found in item.get("annotations") or [] if found["type"] in REGIONS]
        regions.sort(key=lambda found: found.get("z_order") or 0)
        return Record(
            image=image,
            split=split,
            height=int(height),
            width=int(width),
            category_ids=[found["label_id"] for found in regions],
            segmentations=[_region(found) for found in regions],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} cannot be read ({type(error).__name__}: {error}): export it again") from error


def _region(found: dict[str, Any]) -> bytes:
    kind = found["type"]
    if kind == "polygon":
        return json.dumps([found["points"]]).encode()
    if kind == "mask":
        return json.dumps({"size": found["rle"]["size"], "counts": found["rle"]["counts"]}).encode()
    if kind == "ellipse":
        left, top, right, down = found["points"]
        return json.dumps(
            [ellipse((left + right) / 2, (top + down) / 2, (right - left) / 2, (down - top) / 2)]
        ).encode()
    return b"[]"  # a box labels no pixels
