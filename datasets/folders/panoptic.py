"""Reads panoptic COCO: a json with segments per image, and PNGs whose colors are the ids of segments.

    annotations/panoptic_train2017.json      {"annotations": [{"image_id": 1, "file_name": "a.png",
    annotations/panoptic_train2017/a.png                       "segments_info": [{"id": 8345037, "category_id": 51}]}], ...}

The id of a pixel is red + 256 x green + 65536 x blue; 0 is unlabeled. Format: COCO's panoptic task, which Cityscapes and ADE20K are
also converted to. datumaro reads it with one mask per segment in memory; supervision does not read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from common.coco_json import Category, LenientImage
from common.images import composed
from folders.coco_files import HEAD, ImageFinder
from folders.masks import MaskSource
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.writing.report import UNANNOTATED
from kiloseg.storage.errors import DataError

BACKGROUND = "background"


class _Segment(msgspec.Struct, gc=False):
    id: int
    category_id: int


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    file_name: str
    segments_info: list[_Segment]


class _Content(msgspec.Struct, gc=False):
    images: list[LenientImage]
    annotations: list[_Annotation]
    categories: list[Category]


@dataclass(frozen=True, kw_only=True)
class PanopticReader:
    """Reads the PNG of an image into class ids; picklable, and as small as the segments allow."""

    root: Path
    classes: list[str]
    """One name per class id."""
    places: dict[str, tuple[int, int]]
    """Where the segments of a PNG (relative to the root) begin and end in the arrays below."""
    segments: np.ndarray
    """Ids of segments, ascending in each PNG: int64 of shape (S,)."""
    class_ids: np.ndarray
    """The class of each segment: uint16 of shape (S,)."""
    empty: int
    """The class id of unlabeled pixels."""

    def __call__(self, path: Path) -> tuple[np.ndarray, dict[str, int]]:
        """Returns uint16 class ids of shape (H, W), and whether there is no segment; raises DataError."""
        start, stop = self.places[path.relative_to(self.root).as_posix()]
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if image.mode not in ("RGB", "RGBA"):
                    raise DataError(
                        f"{path} is a {image.mode} image: expected a panoptic PNG, whose red, green and blue make an id"
                    )
                pixels_HW3 = np.asarray(image)[..., :3].astype(np.int64)
        except FileNotFoundError:
            raise DataError(f"{path} is missing: expected the segments of an image; restore it") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} cannot be decoded ({error}): expected a whole PNG; restore it") from error
        ids_HW = pixels_HW3[..., 0] + 256 * pixels_HW3[..., 1] + 65536 * pixels_HW3[..., 2]
        known = np.concatenate(([0], self.segments[start:stop]))
        class_ids = np.concatenate((np.array([self.empty], np.uint16), self.class_ids[start:stop]))
        place_HW = np.searchsorted(known, ids_HW).clip(max=len(known) - 1)
        unknown_HW = known[place_HW] != ids_HW
        if unknown_HW.any():
            raise DataError(
                f"{path}: segment {ids_HW[unknown_HW][0]} covers {int(unknown_HW.sum())} pixels or fewer, but its json does not "
                "list it under segments_info: restore both from the same export"
            )
        return class_ids[place_HW], {UNANNOTATED: int(not ids_HW.any())}

    def recipe(self) -> dict[str, object]:
        """Returns what the masks are read with, as JSON-able values; the files of the segments are added by others."""
        return {"classes": self.classes, "empty": self.empty}


def is_panoptic(path: Path) -> bool:
    """Whether a json file is one of panoptic COCO, by its first and last bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        text = file.read(HEAD)
        file.seek(max(size - HEAD, 0))
        return b'"segments_info"' in text + file.read(HEAD)


def panoptic_source(root: Path, jsons: Mapping[str, Path], files: list[str], *, background: bool) -> MaskSource:
    """Returns the images and PNGs of json files by split (or of one under "").

    Args:
        root: the folder of all files.
        jsons: the json files.
        files: all files below the root, relative to it.
        background: whether unlabeled pixels are class 0 of that name; otherwise they are ignored.

    Raises:
        DataError: A file has another structure, files have different categories, or an image or PNG does not exist.
    """
    contents = {split: _read(path) for split, path in jsons.items()}
    categories = _categories(jsons, contents)
    class_ids = {category.id: number for number, category in enumerate(categories, start=int(background))}
    pngs = {composed(file): file for file in files if file.lower().endswith(".png")}
    masks: dict[str, list[tuple[_Annotation, str]]] = {}
    for split, content in contents.items():
        folder = jsons[split].parent.resolve().relative_to(root.resolve()).as_posix()
        masks[split] = [(found, _png(found, folder, jsons[split], pngs)) for found in content.annotations]
    taken = {png for found in masks.values() for _, png in found}
    finder = ImageFinder(root, [file for file in files if file not in taken])
    pairs: dict[str, str] = {}
    splits: dict[str, list[str]] = {}
    places: dict[str, tuple[int, int]] = {}
    segments: list[int] = []
    of_segments: list[int] = []
    for split, content in contents.items():
        images = {image.id: image.usual() for image in content.images}
        splits[split] = []
        for found, png in masks[split]:
            if found.image_id not in images:
                raise DataError(f"{jsons[split]} has segments of image {found.image_id}, which it does not list")
            image = finder.find(images[found.image_id], split, jsons[split], "")
            pairs[image] = png
            splits[split].append(image)
            ordered = sorted(found.segments_info, key=lambda segment: segment.id)
            places[png] = (len(segments), len(segments) + len(ordered))
            segments += [segment.id for segment in ordered]
            unknown = next((s.category_id for s in ordered if s.category_id not in class_ids), None)
            if unknown is not None:
                raise DataError(
                    f"{jsons[split]}: image {found.image_id} has category {unknown}, which is not listed under categories"
                )
            of_segments += [class_ids[segment.category_id] for segment in ordered]
    reader = PanopticReader(
        root=root.resolve(),
        classes=[BACKGROUND] * background + [category.name.strip() for category in categories],
        places=places,
        segments=np.array(segments, np.int64),
        class_ids=np.array(of_segments, np.uint16),
        empty=0 if background else IGNORE_ID,
    )
    return MaskSource(
        images=root,
        masks=root,
        pairs=pairs,
        reader=reader,
        splits=None if "" in splits else splits,
        files=list(jsons.values()),
    )


def _read(path: Path) -> _Content:
    try:
        return msgspec.json.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), type=_Content, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} is not an annotation file of panoptic COCO ({error}): expected images, categories and annotations with "
            "file_name and segments_info; restore it"
        ) from error


def _categories(jsons: Mapping[str, Path], contents: Mapping[str, _Content]) -> list[Category]:
    """Returns the categories in the order of their ids; raises DataError if files differ, or an id or name occurs twice."""
    listed = {
        split: sorted(content.categories, key=lambda category: category.id) for split, content in contents.items()
    }
    first_split, first = next(iter(listed.items()))
    for split, others in listed.items():
        if [(one.id, one.name) for one in others] != [(one.id, one.name) for one in first]:
            raise DataError(
                f"{jsons[first_split]} and {jsons[split]} have different categories: expected the same ids and names"
            )
    if len({one.id for one in first}) < len(first) or len({one.name.strip() for one in first}) < len(first):
        raise DataError(f"{jsons[first_split]} has a category id or name twice: expected each once")
    if len(first) < 2:
        raise DataError(f"{jsons[first_split]} has {len(first)} categories: expected at least 2")
    return first


def _png(found: _Annotation, folder: str, path: Path, pngs: Mapping[str, str]) -> str:
    """Returns the PNG of an annotation: in the folder of the json's name, beside it, or the only one of that name."""
    name = composed(found.file_name.replace("\\", "/"))
    base = "" if folder == "." else f"{folder}/"
    for candidate in (f"{base}{path.stem}/{name}", f"{base}{name}", name):
        if candidate in pngs:
            return pngs[candidate]
    alike = [file for key, file in pngs.items() if key.rpartition("/")[2] == name.rpartition("/")[2]]
    inside = [file for file in alike if path.stem in file.split("/")]
    alike = inside or alike
    if len(alike) != 1:
        raise DataError(
            f"{path}: image {found.image_id} has its segments in {found.file_name!r}, which exists {len(alike)} times: expected "
            f"one, in a folder {path.stem} beside the json; unpack the PNGs there"
        )
    return alike[0]
