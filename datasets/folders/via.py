"""Reads json of the VGG Image Annotator (VIA 1 and 2): projects and exported annotations.

    {"a.jpg1234": {"filename": "a.jpg", "regions": [
        {"shape_attributes": {"name": "polygon", "all_points_x": [...], "all_points_y": [...]},
         "region_attributes": {"class": "cat"}}]}}

The class is the value of an attribute whose name the user chose. Neither datumaro nor supervision reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.coco_json import Image
from common.images import is_image
from common.polygons import box, ellipse
from folders.annotations import Record, RegionSource
from folders.coco_files import HEAD, ImageFinder
from folders.json_files import read_json
from kiloseg.storage.errors import DataError


def is_via(path: Path) -> bool:
    """Whether a json file is one of VIA's, by its beginning."""
    with path.open("rb") as file:
        text = file.read(HEAD)
    return b'"_via_img_metadata"' in text or (b'"filename"' in text and b'"regions"' in text and b'"size"' in text)


def via_source(root: Path, paths: dict[str, Path], files: list[str], attribute: str | None) -> RegionSource:
    """Returns the annotations of files by split (or of one under ""); images are below `root`.

    Raises:
        DataError: A file has another structure, or nothing tells which attribute is the class.
    """
    contents = {split: _entries(path) for split, path in paths.items()}
    name = attribute or _attribute(paths, contents)

    def records() -> Iterator[Record]:
        finder = ImageFinder(root, files)
        for split, entries in contents.items():
            for number, entry in enumerate(entries):
                yield _record(entry, number, split, paths[split], finder, name)

    first = next(iter(paths.values()))
    images = [file for file in files if is_image(file)]
    return RegionSource(
        root=root,
        files=list(paths.values()),
        records=records,
        stem=first.stem,
        settings={"label_field": name},
        images=images,
    )


def _entries(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    images = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(images, dict) or not all(
        isinstance(entry, dict) and "filename" in entry for entry in images.values()
    ):
        raise DataError(f"{path} is not an export of VIA: expected an object of images with filename and regions")
    return list(images.values())


def _regions(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the regions of an image: a list, or in VIA 1 an object of numbers."""
    regions = entry.get("regions") or []
    return list(regions.values() if isinstance(regions, dict) else regions)


def _attribute(paths: dict[str, Path], contents: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the only attribute that regions have a value of; raises DataError."""
    found: dict[str, None] = {}
    for entries in contents.values():
        for entry in entries:
            for region in _regions(entry):
                found |= dict.fromkeys(name for name, value in (region.get("region_attributes") or {}).items() if value)
    first = next(iter(paths.values()))
    if not found:
        raise DataError(
            f"{first}: no region has an attribute with a value, so no class: give them one in VIA (Region Attributes) and export "
            "again"
        )
    if len(found) > 1:
        raise DataError(
            f"{first}: regions have the attributes {', '.join(found)}: choose the one that is the class with --label-field "
            f"{next(iter(found))}"
        )
    return next(iter(found))


def _record(entry: dict[str, Any], number: int, split: str, path: Path, finder: ImageFinder, attribute: str) -> Record:
    name = str(entry["filename"])
    image = finder.find(Image(number, file_name=name), split, path, "")
    ids, regions = [], []
    for place, region in enumerate(_regions(entry)):
        where = f"{path}: image {name}, region {place}"
        try:
            ids.append(_class(region["region_attributes"].get(attribute), where, attribute))
            regions.append(_shape(region["shape_attributes"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{where} cannot be read ({type(error).__name__}: {error}): export it again") from error
    return Record(image=image, split=split, category_ids=ids, segmentations=regions)


def _class(value: Any, where: str, attribute: str) -> str:
    """Returns the value of an attribute: text, or the only box that is checked."""
    chosen = [name for name, on in value.items() if on] if isinstance(value, dict) else [str(value or "").strip()]
    if len(chosen) != 1 or not chosen[0]:
        values = len(chosen) if any(chosen) else "no"
        raise DataError(f"{where} has {values} values of {attribute}: expected one class; correct it in VIA")
    return chosen[0]


def _shape(shape: dict[str, Any]) -> bytes:
    kind = shape["name"]
    if kind == "polygon":
        return json.dumps(
            [[list(point) for point in zip(shape["all_points_x"], shape["all_points_y"], strict=True)]]
        ).encode()
    if kind == "rect":
        return json.dumps(
            [box(shape["x"], shape["y"], shape["x"] + shape["width"], shape["y"] + shape["height"])]
        ).encode()
    if kind == "circle":
        return json.dumps([ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])]).encode()
    if kind == "ellipse":
        turned = shape.get("theta") or 0  # radians
        return json.dumps(
            [ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"], turned * 57.29577951308232)]
        ).encode()
    return b"[]"  # points and lines have no inside
