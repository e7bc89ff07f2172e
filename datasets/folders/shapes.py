"""Checks that annotations can be drawn at all before anything is built."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from common.polygons import has_shape, is_share
from kiloseg.storage.errors import DataError

SOME = 200
"""This many regions are looked at to tell pixels from shares of the image's size."""


def check_shapes(images: Iterable[list[bytes]], path: Path, *, drawn: bool) -> None:
    """Raises DataError if no region has a shape, or if coordinates are not pixels.

    Args:
        images: the segmentations of each image, as json text.
        path: the file that they are from, for messages.
        drawn: whether they are polygons or RLE.
    """
    num_images = num_regions = 0
    looked_at: list[bytes] = []
    for segmentations in images:
        num_images += 1
        num_regions += len(segmentations)
        looked_at += itertools.islice(filter(has_shape, segmentations), SOME - len(looked_at))
        if len(looked_at) >= SOME:
            break
    if num_images and not num_regions:
        raise DataError(
            f"{path} has {num_images:,} images and no annotation of any: expected polygons or masks; a data set of images alone "
            "cannot be learned from, so export the annotations too"
        )
    if num_regions and not looked_at:
        raise DataError(
            f"{path} has {num_regions:,} regions and none has a shape, as in exports of boxes only: expected polygons or RLE in "
            "segmentation; export them as segmentation (polygons or masks), since a box does not label pixels"
        )
    if drawn and looked_at and all(map(is_share, looked_at)):
        raise DataError(
            f"{path}: all coordinates of its regions are from 0 to 1, as shares of the image's size: expected pixels; multiply "
            "them by the width and height"
        )
