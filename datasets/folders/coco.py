"""Reads COCO or LVIS style json: by COCO, LVIS, CVAT, Roboflow, FiftyOne, Label Studio and many others.

datumaro and supervision read it too, but hold each annotation as an object with its own mask and assign class ids by position.
That takes minutes and gigabytes for a file of LVIS's size, which is mapped here.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.coco_json import CocoJson
from common.images import is_image, walk
from folders.annotations import RegionSource
from folders.arguments import Arguments
from folders.coco_files import ImageFinder, find_jsons
from kiloseg.storage.errors import DataError


def source_of(arguments: Arguments) -> RegionSource:
    """Returns the source that --images and --annotations name; raises DataError."""
    assert arguments.annotations is not None and arguments.images is not None
    path = arguments.annotations
    jsons = find_jsons(path, arguments.given_splits) if path.is_dir() else {"": path}
    if path.is_dir():
        for split in ("train", "val"):
            if split not in jsons and "" not in jsons:
                print(f"{arguments.name}: {path / (split + '.json')} does not exist, so there will be no split {split}")
    return coco_source(arguments.images, jsons, list(walk(arguments.images)))


def coco_source(root: Path, jsons: Mapping[str, Path], files: list[str] | None = None) -> RegionSource:
    """Returns the annotations of json files by split (or of one under ""), with images below `root`."""
    loaded = functools.cache(lambda: {split: CocoJson(path) for split, path in jsons.items()})
    return RegionSource(
        root=root,
        files=list(jsons.values()),
        records=lambda: records(root, loaded(), files),
        classes=lambda: categories(list(loaded().values())),
        images=[file for file in files or () if is_image(file)],
        stem=next(iter(jsons.values())).stem.strip("_."),
    )


class CocoRecord(NamedTuple):
    """Holds an image whose regions stay in the mapped file until they are needed, so a gigabyte of them never becomes objects."""

    image: str
    split: str
    height: int
    width: int
    content: CocoJson
    image_id: int

    @property
    def category_ids(self) -> list[Any]:
        """Returns the category id of each region."""
        return [annotation.category_id for annotation in self.content.annotations(self.image_id)]

    @property
    def segmentations(self) -> list[bytes]:
        """Returns polygons or RLE as json text."""
        texts = (bytes(annotation.segmentation) for annotation in self.content.annotations(self.image_id))
        return [b"[]" if text.strip() == b"null" else text for text in texts]


def records(root: Path, jsons: Mapping[str, CocoJson], files: list[str] | None) -> Iterator[CocoRecord]:
    """Yields each image; a segmentation that is null or missing counts as one without a shape."""
    finder = ImageFinder(root, files)
    for split, content in jsons.items():
        folder = content.path.parent.resolve()
        inside = folder.is_relative_to(root.resolve())
        beside = folder.relative_to(root.resolve()).as_posix() if inside else ""
        for image in content.images.values():
            file = finder.find(image, split, content.path, "" if beside == "." else beside)
            yield CocoRecord(file, split, image.height, image.width, content, image.id)


def categories(jsons: list[CocoJson]) -> dict[int, str]:
    """Maps category ids to names, in the order of the ids, without categories that only head others.

    Roboflow also lists a super-category under categories; no annotation has it, and its name may be that of a class.

    Raises:
        DataError: Files have different categories, or an id or name occurs twice.
    """
    first = sorted((category.id, category.name) for category in jsons[0].categories)
    for other in jsons[1:]:
        if sorted((category.id, category.name) for category in other.categories) != first:
            raise DataError(
                f"{jsons[0].path} and {other.path} have different categories: expected the same ids and names"
            )
    used = set().union(*(content.used_categories() for content in jsons))
    listed = sorted(jsons[0].categories, key=lambda category: category.id)
    heads = {category.supercategory for category in listed if category.id in used}
    kept = [category for category in listed if category.id in used or category.name not in heads]
    names = {category.id: category.name for category in kept}
    if len(names) != len(kept):
        raise DataError(f"{jsons[0].path} has a category id twice: expected each id and name once")
    times = Counter(names.values())
    unused = {category_id for category_id, name in names.items() if times[name] > 1 and category_id not in used}
    return {category_id: name for category_id, name in names.items() if category_id not in unused}
