"""Reads annotations in COCO's JSON format, which LVIS and many tools share, without holding a gigabyte of them as objects.

pycocotools.coco.COCO turns every number of every polygon into a Python object, which takes several times the size of the file.
Here the file stays on disk (mapped, not read), and each segmentation is kept as the position of its text in the file. Only its
image, its category and that position are parsed.
"""

from __future__ import annotations

import codecs
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from kiloseg.storage.errors import DataError


class Image(msgspec.Struct, gc=False):
    """Holds an image; LVIS has only `coco_url`, COCO has both names, most tools have only `file_name`."""

    id: int
    height: int = 0
    """The height in pixels, or 0 if the file does not say."""
    width: int = 0
    file_name: str = ""
    coco_url: str = ""


class Annotation(msgspec.Struct, gc=False):
    """Holds a region of an image: polygons or RLE in `segmentation`, as json text."""

    image_id: int
    category_id: int
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class Category(msgspec.Struct, gc=False):
    """Holds a category, whose id need not be its position."""

    id: int
    name: str
    supercategory: str | None = None


class _Content(msgspec.Struct, gc=False):
    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category] = []


class LenientImage(msgspec.Struct, gc=False):
    """Holds an image as written by tools that have no size or URL: null."""

    id: int
    height: int | None = None
    width: int | None = None
    file_name: str | None = None
    coco_url: str | None = None

    def usual(self) -> Image:
        """Returns it with 0 and "" for null."""
        return Image(self.id, self.height or 0, self.width or 0, self.file_name or "", self.coco_url or "")


class _LenientContent(msgspec.Struct, gc=False):
    images: list[LenientImage]
    annotations: list[Annotation]
    categories: list[Category] = []


_NO_NUMBER = re.compile(rb"(?<=[:,\[\s])-?(?:NaN|Infinity)(?=[\s,}\]])")


def _decode(text: mmap.mmap) -> _Content:
    """Returns the content. It accepts null or nothing for sizes, file_name and coco_url, numbers as text, whole numbers with a
    point (20.0), a byte order mark, and NaN, which Python's json writes, as null.

    Raises:
        msgspec.DecodeError: Anything else; the message names the place, such as $.annotations[3].category_id.
    """
    try:
        return msgspec.json.decode(text, type=_Content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        usual = error
    content = text[3:] if text[:3] == codecs.BOM_UTF8 else text[:]
    if not content.strip():
        raise usual
    try:
        lenient = msgspec.json.decode(_NO_NUMBER.sub(b"null", content), type=_LenientContent, strict=False)
    except msgspec.DecodeError as error:
        raise error from usual
    return _Content([image.usual() for image in lenient.images], lenient.annotations, lenient.categories)


class CocoJson:
    """Holds the content of one file.

    Raises:
        DataError: There is no such file, it is not json or has another structure, or an annotation's image is not listed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            content = _decode(text)
        except FileNotFoundError:
            raise DataError(f"{path} is missing: expected annotations in COCO's JSON format") from None
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:  # ValueError: an empty file has no map
            raise DataError(
                f"{path} is not an annotation file in COCO's JSON format ({error}): expected an object with images, "
                "annotations and categories; restore it"
            ) from error
        self.categories = content.categories
        self.images = {image.id: image for image in content.images}
        if len(self.images) != len(content.images):
            raise DataError(
                f"{path} lists an image id twice: expected {len(content.images):,} ids; restore or correct it"
            )
        self._annotations = content.annotations
        image_ids = np.fromiter((annotation.image_id for annotation in content.annotations), np.int64)
        self._order = np.argsort(image_ids, kind="stable")
        self._image_ids = image_ids[self._order]
        foreign = set(np.unique(image_ids).tolist()) - self.images.keys()
        if foreign:
            raise DataError(
                f"{path} has annotations of image {min(foreign)}, which it does not list under images; restore or correct it"
            )

    def annotations(self, image_id: int) -> Iterator[Annotation]:
        """Yields the annotations of an image, in the order of the file; none for an image that has none or is not listed."""
        start, stop = np.searchsorted(self._image_ids, [image_id, image_id + 1])
        for number in self._order[start:stop]:
            yield self._annotations[number]

    def used_categories(self) -> set[int]:
        """Returns the ids of the categories that have an annotation."""
        return {annotation.category_id for annotation in self._annotations}
