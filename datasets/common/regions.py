"""Draws the regions of an image (polygons or RLE) into a mask of class ids, with pycocotools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from common.annotation_store import AnnotatedImage, read_store
from common.pairs import read_image
from common.polygons import area, covered_places, decode, has_shape, is_box, to_rles
from kiloseg.data.codec import IGNORE_ID, encode_image
from kiloseg.data.writing.build import ShardTask
from kiloseg.data.writing.current import working_on
from kiloseg.data.writing.report import BOXES, HIDDEN, REGIONS, SHAPELESS, UNANNOTATED, WITHOUT_PIXEL
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError

Overlap = Literal["first", "last", "smallest"]
"""If several regions cover a pixel, it belongs to the first or the last in the file, or to the smallest."""


def draw_regions(image: AnnotatedImage, empty: int = IGNORE_ID, overlap: Overlap = "first") -> np.ndarray:
    """Returns uint16 class ids of shape (H, W): at each pixel that of the region on top, or `empty` if there is none.

    Of regions of equal size, the later one counts as the smaller.

    Raises:
        DataError: A segmentation cannot be drawn; see `polygons.to_rles`.
    """
    # The order is pycocotools', column by column, so copying runs along the memory.
    mask_HW = np.full((image.height, image.width), empty, np.uint16, order="F")
    for number, rles in _bottom_to_top(image, overlap):
        for covered_HW in map(decode, rles):
            np.copyto(mask_HW[:, : covered_HW.shape[1]], image.class_ids[number], where=covered_HW.view(bool))
    return mask_HW


def draw_counted(image: AnnotatedImage, empty: int, overlap: Overlap) -> tuple[np.ndarray, dict[str, int]]:
    """Does what `draw_regions` does, and counts regions that have no shape, are boxes, or are hidden completely by others."""
    number_HW = np.zeros((image.height, image.width), np.uint32, order="F")
    drawn = np.zeros(len(image.class_ids) + 1, bool)
    for number, rles in _bottom_to_top(image, overlap):
        for rle in rles:
            drawn[number + 1] |= _paint(number_HW, rle, number + 1)
    seen = np.bincount(number_HW.ravel(order="K"), minlength=len(drawn)) > 0
    shapeless = sum(not has_shape(text) for text in image.segmentations)
    hidden = int((drawn & ~seen)[1:].sum())
    table = np.array([empty, *image.class_ids], np.uint16)
    counts = {
        REGIONS: len(image.class_ids),
        SHAPELESS: shapeless,
        HIDDEN: hidden,
        BOXES: sum(map(is_box, image.segmentations)),
        WITHOUT_PIXEL: len(image.class_ids) - shapeless - int(drawn.sum()),
        UNANNOTATED: int(not image.class_ids),
    }
    return table[number_HW], counts


def _paint(mask_HW: np.ndarray, rle: dict[str, Any], value: int) -> bool:
    """Writes a value where an RLE is one, into a mask in Fortran order; returns whether that is anywhere.

    A small region is written pixel by pixel, since decoding it takes as long as a region of the whole image.
    """
    covered = area(rle)
    if covered * 16 < mask_HW.size:
        mask_HW.reshape(-1, order="F")[covered_places(rle)] = value
    else:
        covered_HW = decode(rle)
        np.copyto(mask_HW[:, : covered_HW.shape[1]], value, where=covered_HW.view(bool))
    return covered > 0


def _bottom_to_top(image: AnnotatedImage, overlap: Overlap) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Yields number and RLEs of each region, in drawing order."""
    numbers = range(len(image.class_ids))
    if overlap == "smallest":
        rles = [_rles(image, number) for number in numbers]
        areas = [sum(map(area, parts)) for parts in rles]
        for number in sorted(numbers, key=lambda number: -areas[number]):
            yield number, rles[number]
        return
    for number in reversed(numbers) if overlap == "first" else numbers:
        yield number, _rles(image, number)


def _rles(image: AnnotatedImage, number: int) -> list[dict[str, Any]]:
    text = image.segmentations[number]
    try:
        return to_rles(text, image.height, image.width) if has_shape(text) or text.strip() == b"null" else []
    except (KeyError, TypeError, ValueError, msgspec.DecodeError) as error:
        raise DataError(
            f"{image.image}: a segmentation of class {image.class_ids[number]} cannot be drawn (annotation {number} of the image: "
            f"{error}): expected polygons or RLE, not {text[:60]!r}; correct the annotations"
        ) from error


def make_samples(
    task: ShardTask,
    *,
    root: Path,
    stores: dict[str, Path],
    empty: int = IGNORE_ID,
    overlap: Overlap | None = None,
    read_image: Callable[[Path], bytes] = read_image,
    read_region: Callable[[bytes, int, int], bytes] | None = None,
) -> Iterator[Sample]:
    """Yields the samples of a shard: image bytes as they are, and their regions drawn.

    Args:
        task: the shard to read.
        root: the root of the images.
        stores: the store of each split.
        empty: the class id of pixels outside all regions.
        overlap: which region is on top; without it, it is the first, and nothing is counted for the report.
        read_image: reads the JPEG or PNG bytes from an image's file.
        read_region: returns polygons or RLE of what the store holds and the image's height and width, if it holds something
            else, such as the file of a mask.
    """
    for image in read_store(stores[task.split], task.start, task.stop):
        working_on(image.image)
        data = read_image(root / image.image)
        # This runs before anything is drawn: sizes in a json file can be anything.
        size = encode_image(data)[2]
        if size != (image.height, image.width):
            raise DataError(
                f"{root / image.image}: sample {image.key}: mask is {image.height, image.width}, its image {size} (height, "
                "width): its annotations say another size; correct them, or restore the image"
            )
        if read_region is not None:
            regions = [read_region(text, image.height, image.width) for text in image.segmentations]
            image = image._replace(segmentations=regions)
        counts: dict[str, int] = {}
        if overlap is None:
            mask = draw_regions(image, empty)
        else:
            mask, counts = draw_counted(image, empty, overlap)
        meta = {"image": image.image, "regions": len(image.class_ids)}
        yield Sample(key=image.key, image=data, mask=mask, meta=meta, counts=counts)
