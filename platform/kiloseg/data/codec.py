"""Encodes and decodes the parts of a sample: masks as 16-bit PNG, images as JPEG or PNG.

Masks are one-channel 16-bit PNG; 65,535 means ignore. Nothing in a shard is ever unpickled: only JPEG, PNG and JSON are
decoded, by Pillow and json. Needs NumPy and Pillow only.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import putchunk

IGNORE_ID = 65535
"""Id of pixels in a stored mask that have no label."""


def encode_mask(mask: np.ndarray) -> bytes:
    """Encodes an integer mask of shape (H, W) as a 16-bit PNG.

    Raises:
        ValueError: the mask is not an (H, W) array of integers from 0 to 65,535.
    """
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise ValueError(f"a mask of shape {mask.shape} and type {mask.dtype}: expected integers of shape (H, W)")
    if mask.size and (mask.min() < 0 or mask.max() > IGNORE_ID):
        raise ValueError(
            f"a mask with ids {mask.min()} to {mask.max()}: expected 0 to {IGNORE_ID - 1}, or {IGNORE_ID} for ignore"
        )
    height, width = mask.shape
    # Pillow filters rows before it compresses them, which suits photographs. The rows of a mask already repeat: unfiltered
    # rows are read in less than half the time, at about the same size (benchmarks/README.md).
    rows = np.zeros((height, 1 + 2 * width), dtype=np.uint8)
    rows[:, 1:] = mask.astype(">u2", order="C").view(np.uint8)
    buffer = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    buffer.seek(0, io.SEEK_END)
    sixteen_bits, one_channel = 16, 0
    putchunk(buffer, b"IHDR", struct.pack(">IIBBBBB", width, height, sixteen_bits, one_channel, 0, 0, 0))
    putchunk(buffer, b"IDAT", zlib.compress(rows.tobytes(), 7))
    putchunk(buffer, b"IEND")
    return buffer.getvalue()


def decode_mask(data: bytes) -> np.ndarray:
    """Decodes the bytes of a 16-bit, one-channel PNG to a uint16 mask of shape (H, W).

    Raises:
        ValueError: it is any other kind of image. An 8-bit mask may have lost ids above 255, so it is rejected.
    """
    with open_image(data, "PNG") as image:
        if not image.mode.startswith("I"):
            raise ValueError(
                f"mask is a {image.format} of mode {image.mode}: expected a 16-bit one-channel PNG, "
                "since 8 bits lose class ids above 255; write masks with kiloseg.data.codec.encode_mask"
            )
        return np.asarray(image).astype(np.uint16)


def decode_image(data: bytes) -> np.ndarray:
    """Decodes a JPEG or PNG to a uint8 image of shape (H, W, 3); grayscale is repeated to three channels."""
    with open_image(data, "JPEG", "PNG") as image:
        if image.mode.startswith("I"):
            raise ValueError(
                "its image has one channel of 16 bits, which Pillow would reduce to 8 bits: expected 8 bits a channel"
            )
        return np.array(image.convert("RGB"))


def open_image(data: bytes, *formats: str) -> Image.Image:
    """Opens an image of one of the formats; raises ValueError for any other, and for more pixels than Pillow accepts."""
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        wanted = "a 16-bit one-channel PNG" if formats == ("PNG",) else "a JPEG or PNG"
        raise ValueError(f"its {len(data)} bytes are not such a file: expected {wanted}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def encode_image(image: np.ndarray | bytes) -> tuple[str, bytes, tuple[int, int]]:
    """Returns the suffix, bytes and (height, width) of an image as a shard stores it; ValueError for other formats."""
    if isinstance(image, bytes):
        with open_image(image, "JPEG", "PNG") as opened:
            # Decided by content: some cameras store a second picture after the first, and Pillow calls such a JPEG an MPO.
            return ("jpg" if image.startswith(b"\xff\xd8") else "png"), image, (opened.height, opened.width)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92)
    return "jpg", buffer.getvalue(), image.shape[:2]


def count_ids(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids in a mask, except the ignore id, and how many pixels have each."""
    if mask.dtype == np.uint16:
        counts = np.bincount(mask.ravel(order="K"))  # takes a quarter of the time of sorting; in any order of pixels
        ids = np.flatnonzero(counts)
        pixels = counts[ids]
    else:
        ids, pixels = np.unique(mask, return_counts=True)
    labeled = ids != IGNORE_ID
    return ids[labeled], pixels[labeled]
