"""Raw samples to images and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from simplejpeg import decode_jpeg, decode_jpeg_header

from kiloseg.data.classes import UNKNOWN, Classes, label_table
from kiloseg.data.shards import IGNORE_ID, DataError, DatasetInfo, decode_image, decode_mask

_JPEG = b"\xff\xd8"


class Decoder:
    """Raw sample to uint8 image (H, W, 3) and int32 labels (H, W)."""

    def __init__(self, info: DatasetInfo, classes: Classes) -> None:
        self.info = info
        self.table = label_table(info, classes)
        self.stored_ids_are_labels = len(classes) == info.num_classes

    def __call__(self, sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Raises DataError for a sample that cannot be decoded, lacks a part, or has ids of no class."""
        where = f"{sample['__url__']}: sample {sample['__key__']}"
        image_bytes, mask_bytes = sample.get("jpg", sample.get("png")), sample.get("mask.png")
        if image_bytes is None or mask_bytes is None:
            missing = "image (.jpg or .png)" if image_bytes is None else "mask (.mask.png)"
            parts = ", ".join(part for part in sample if not part.startswith("__"))
            raise DataError(f"{where} has no {missing}; it has: {parts}")
        try:
            image, mask = decode_pixels(image_bytes), decode_mask(mask_bytes)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
            raise DataError(f"{where} cannot be decoded: {error}") from error
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"{where}: mask is {mask.shape}, its image {image.shape[:2]} (height, width); they must be equal"
            )
        # In 16 bits the ignore id + 1 is 0, so that one maximum finds ids of no class, and ids shift to labels + 1.
        shifted = mask + np.uint16(1)
        if shifted.max(initial=0) > self.info.num_classes:
            unknown = int(mask[self.table[mask] == UNKNOWN][0])
            raise DataError(
                f"{where}: mask has class id {unknown}, expected 0 to {self.info.num_classes - 1}, or {IGNORE_ID} for ignore"
            )
        if not self.stored_ids_are_labels:
            return image, self.table.take(mask)
        labels = shifted.astype(np.int32)
        labels -= 1
        return image, labels


def decode_pixels(data: bytes) -> np.ndarray:
    """As `shards.decode_image`, pixel for pixel, but a sound JPEG in two thirds of the time.

    Whatever simplejpeg objects to is Pillow's to judge: it mends more, and its messages are clear.
    """
    if data.startswith(_JPEG):
        try:
            height, width, *_ = decode_jpeg_header(data)
            if Image.MAX_IMAGE_PIXELS is None or height * width <= Image.MAX_IMAGE_PIXELS:
                return decode_jpeg(data)
        except ValueError:
            pass
    return decode_image(data)
