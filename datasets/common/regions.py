"""Regions of an image (polygons or RLE) drawn into a mask of class ids, by pycocotools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pycocotools.mask

from common.annotation_store import AnnotatedImage, read_store
from common.pairs import read_image
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.writing.build import ShardTask
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError


def draw_regions(image: AnnotatedImage, empty: int = IGNORE_ID) -> np.ndarray:
    """uint16 class ids of shape (H, W): at each pixel those of the first region that covers it, `empty` where none does.

    Raises:
        DataError: a segmentation that is neither polygons nor RLE, or an RLE of another size.
    """
    # As pycocotools has it, column by column, so that copying runs along the memory.
    mask_HW = np.full((image.height, image.width), empty, np.uint16, order="F")
    for class_id, text in zip(reversed(image.class_ids), reversed(image.segmentations), strict=True):
        try:
            rles = to_rles(msgspec.json.decode(text), image.height, image.width)
            for covered_HW in map(pycocotools.mask.decode, rles):
                np.copyto(mask_HW[:, : covered_HW.shape[1]], class_id, where=covered_HW.view(bool))
        except (KeyError, TypeError, ValueError, msgspec.DecodeError) as error:
            raise DataError(
                f"{image.image}: a segmentation of class {class_id} cannot be drawn ({error}): expected polygons or RLE, "
                f"not {text[:60]!r}; mend the annotations"
            ) from error
    return mask_HW


def to_rles(segmentation: Any, height: int, width: int) -> list[dict[str, Any]]:
    """pycocotools' compressed RLEs, which together cover the region; what lies right of it may be left out.

    Args:
        segmentation: as json gives it: a list of polygons [x0, y0, x1, y1, ...] in pixels, or an RLE with "size" and
            "counts", whose counts are a list or compressed text.
        height: of the image.
        width: of the image.

    Raises:
        ValueError: anything else.
    """
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) and len(polygon) % 2 == 0 for polygon in segmentation):
            raise ValueError("a polygon is no list of x and y in turn")
        # Two points enclose nothing, and four numbers would be taken for a box.
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        # Columns are drawn from left to right, so those beyond the last corner cost time and change nothing.
        needed = min(width, int(max((x for polygon in polygons for x in polygon[::2]), default=0)) + 2)
        return pycocotools.mask.frPyObjects(polygons, height, max(needed, 1)) if polygons else []
    if not isinstance(segmentation, dict):
        raise ValueError("neither polygons nor RLE")
    if segmentation["size"] != [height, width]:
        raise ValueError(f"an RLE of size {segmentation['size']}, its image has {[height, width]} (height, width)")
    if isinstance(segmentation["counts"], str):
        return [segmentation]
    counts = segmentation["counts"]
    if sum(counts) != height * width or min(counts) < 0:
        raise ValueError(f"RLE counts add up to {sum(counts)}, its image has {height * width} pixels")
    return [pycocotools.mask.frPyObjects(segmentation, height, width)]


def make_samples(
    task: ShardTask,
    *,
    root: Path,
    stores: dict[str, Path],
    empty: int = IGNORE_ID,
    read_image: Callable[[Path], bytes] = read_image,
) -> Iterator[Sample]:
    """The samples of a shard: image bytes as they are, and their regions drawn."""
    for image in read_store(stores[task.split], task.start, task.stop):
        yield Sample(
            key=image.key,
            image=read_image(root / image.image),
            mask=draw_regions(image, empty),
            meta={"image": image.image, "regions": len(image.class_ids)},
        )
