"""Reads YOLO's segmentation format: data.yaml with names, and per image a txt with a line "class x y x y ..." per polygon.

    images/train/a.jpg  labels/train/a.txt            coordinates are shares of the width and height
    train/images/a.jpg  train/labels/a.txt

Format: Ultralytics' documentation of segmentation data sets. A line of five numbers is a box, which has no shape here.
supervision reads it too, but decodes every image and keeps one mask per object in memory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from common.class_names import read_names, read_text
from common.images import Exif, composed, image_size
from folders.annotations import Record, RegionSource
from folders.arguments import Arguments
from folders.lists import Ends
from kiloseg.storage.errors import DataError


def yolo_source(
    arguments: Arguments, root: Path, table: Path, texts: list[str], images: list[str], orphans: int
) -> RegionSource:
    """Returns the polygons of the txt files of images.

    Args:
        arguments: what the user said.
        root: the folder that files and images are given relative to.
        table: the file of class names.
        texts: the txt files that belong to an image.
        images: the images.
        orphans: how many txt files in folders of labels belong to none.
    """
    splits = stated_splits(root, table, images)
    of_split = {image: split for split, listed in splits.items() for image in listed}
    unlisted = [image for image in images if image not in of_split] if splits else []

    left_out = {f"images that {table.name} does not list": len(unlisted), "txt files without an image": orphans}

    def records() -> Iterator[Record]:
        listed = [image for image in images if image in of_split] if splits else images
        for record in read_yolo(root, texts, listed, arguments.exif):
            yield dataclasses.replace(record, split=of_split.get(record.image, ""))

    return RegionSource(
        root=root,
        files=[table, *(root / file for file in texts)],
        records=records,
        classes=lambda: {class_id: name for class_id, name in sorted(read_names(table).items()) if name},
        left_out={kind: number for kind, number in left_out.items() if number},
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


def label_in(image: str, texts: Collection[str]) -> str | None:
    """Returns the txt file of an image among others: in the folder labels, or beside the image."""
    beside = composed(str(PurePosixPath(image).with_suffix(".txt")))
    return next((text for text in (label_of(image), beside) if text in texts), None)


def stated_splits(root: Path, table: Path, images: list[str]) -> dict[str, list[str]]:
    """Returns the images of each split as data.yaml (train: images/train, or a list of files) or obj.data says; empty if neither
    does.

    Raises:
        DataError: A list names an image that is not there.
    """
    entries = entries_of(table)
    ends = Ends(images)
    found: dict[str, list[str]] = {}
    taken: set[str] = set()
    for split in ("train", "val", "test"):
        stated = entries.get(split)
        paths = [str(path) for path in (stated if isinstance(stated, list) else [stated]) if path]
        listed = [image for path in paths for image in _images_at(root, path, images, ends)]
        if paths and not listed:
            print(f"{table}: {split} is {', '.join(paths)}, where no labeled image is")
        found[split] = [image for image in dict.fromkeys(listed) if image not in taken]
        taken.update(listed)
        if listed and not found[split]:
            print(f"{table}: {split} has the images of another split, so there will be no split {split}")
    return {split: listed for split, listed in found.items() if listed}


def find_yaml(root: Path, listed: list[str]) -> Path | None:
    """Returns the yaml file of names at the top of a folder: data.yaml before dataset.yaml before others, or None."""
    files = [file for file in listed if Path(file).suffix.lower() in (".yaml", ".yml") and "/" not in file]
    files.sort(key=lambda file: (not file.startswith("data."), not file.startswith("dataset."), file))
    return next((root / file for file in files if _has_names(root / file)), None)


def _has_names(file: Path) -> bool:
    """Whether a yaml file has names of classes, or how many there are; raises DataError if data.yaml is damaged."""
    try:
        return bool({"names", "nc"} & entries_of(file).keys())
    except DataError:
        if file.stem in ("data", "dataset"):
            raise
        return False  # another program's, with tags of its own


def entries_of(table: Path) -> dict[str, Any]:
    """Returns the entries of data.yaml, or of obj.data beside obj.names; empty for other files.

    Raises:
        DataError: The file is not yaml.
    """
    if table.suffix.lower() in (".yaml", ".yml"):
        import yaml

        try:
            content = yaml.safe_load(read_text(table))
        except yaml.YAMLError as error:
            raise DataError(f"{table} is not valid YAML ({error}): correct it") from error
        entries = content if isinstance(content, dict) else {}
        return {**entries, "val": entries.get("val") or entries.get("validation") or entries.get("valid")}
    described = table.with_name("obj.data")
    lines = read_text(described).splitlines() if described.is_file() else []
    entries = {name.strip(): value.strip() for name, mark, value in (line.partition("=") for line in lines) if mark}
    return {**entries, "val": entries.get("val") or entries.get("valid")}


def by_name(files: Iterable[str]) -> dict[str, str]:
    """Maps txt files, in the composed form of Unicode and with their suffix in lower case, to the files."""
    return {
        composed(str(PurePosixPath(file).with_suffix(".txt"))): file for file in files if file.lower().endswith(".txt")
    }


def _images_at(root: Path, path: str, images: list[str], ends: Ends) -> list[str]:
    """Returns the images in a folder or a list of files that data.yaml names; its path may be one of another machine."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if name.endswith(".txt"):
            if start == len(parts) - 1 and not (root / name).is_file():
                raise DataError(f"{root / name} is missing: data.yaml names it as a list of images; restore it")
            if (root / name).is_file():
                return [
                    _listed(line.strip(), ends, root / name)
                    for line in read_text(root / name).splitlines()
                    if line.strip()
                ]
        elif inside := [image for image in images if f"/{name}/" in f"/{image}"]:
            return inside
    return []


def _listed(line: str, ends: Ends, path: Path) -> str:
    found = ends.find(line)
    if found is None:
        raise DataError(
            f"{path} lists {line!r}, which is not an image here, or is ambiguous: restore it, or correct the list"
        )
    return found


def read_yolo(root: Path, texts: list[str], images: list[str], exif: Exif) -> Iterator[Record]:
    """Yields each image with its polygons; an image without a txt file has no objects.

    Raises:
        DataError: A line is something else; the message names the file and the line.
    """
    there = by_name(texts)
    for image in images:
        height, width = image_size(root / image, exif)
        ids, segmentations = [], []
        label = label_in(image, there)
        text = None if label is None else there[label]
        lines = (root / text).read_text(encoding="utf-8-sig").splitlines() if text else []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                first, *numbers = line.split()
                class_id, values = int(float(first)), [float(value) for value in numbers]
                if class_id != float(first):
                    raise ValueError(f"class {first}")
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
