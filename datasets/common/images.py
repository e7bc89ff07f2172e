"""Handles images as people have them: finds them in folders, decodes them once as training does, and stores them as JPEG or
PNG."""

from __future__ import annotations

import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from PIL import Image, ImageOps, UnidentifiedImageError

from kiloseg.data.reading.decoding import decode_pixels
from kiloseg.storage.errors import DataError

JPEG = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
OTHERS = (".webp", ".bmp", ".tif", ".tiff", ".gif")
"""These are decoded by Pillow and stored as PNG."""
SUFFIXES = (*JPEG, ".png", *OTHERS)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
PICTURES = (
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".psd",
    ".svg",
    ".raw",
    ".dng",
    ".cr2",
    ".nef",
    ".arw",
    ".exr",
    ".npy",
)
"""Files with these suffixes are pictures too but are not read; the report counts them."""

Exif = Literal["refuse", "apply", "ignore"]
ORIENTATION = 0x0112
"""This EXIF tag says how to turn an image; 1 means not at all."""


def walk(root: Path) -> Iterator[str]:
    """Yields all files below a folder, as paths relative to it, sorted; hidden ones are skipped and links followed once.

    Hidden names begin with a dot, such as the copies in .ipynb_checkpoints and macOS's companions of files on other file systems;
    __MACOSX is hidden too.
    """
    visited: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not hidden(name))
        inner = os.path.relpath(folder, root)
        for name in sorted(files):
            if not hidden(name):
                yield name if inner == "." else f"{inner}/{name}"


def hidden(name: str) -> bool:
    """Whether a file or folder of that name was not put there by a person."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def is_image(file: str) -> bool:
    """Whether a file has the suffix of an image that can be read."""
    return Path(file).suffix.lower() in SUFFIXES


def count_unread(files: Iterator[str]) -> Counter[str]:
    """Counts files that are pictures of a kind that is not read, by their suffix."""
    suffixes = (Path(file).suffix.lower() for file in files)
    return Counter(f"{suffix} files" for suffix in suffixes if suffix in PICTURES)


def composed(name: str) -> str:
    """Returns a name in the composed form of Unicode: macOS spells é as e plus an accent, others as one letter."""
    return unicodedata.normalize("NFC", name)


def image_size(path: Path, exif: Exif) -> tuple[int, int]:
    """Returns (height, width) as `read_stored` gives it, from the header; raises DataError."""
    with _opened(path, path) as image:
        turned = exif == "apply" and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def read_stored(path: Path, *, exif: Exif) -> bytes:
    """Returns the bytes to store for an image's file; see `stored`; raises DataError also if there is no such file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected an image; restore it") from None
    return stored(data, path, exif=exif)


def stored(data: bytes, path: Path | str, *, exif: Exif) -> bytes:
    """Returns the bytes to store for an image: its own, or a PNG of its pixels if it is neither JPEG nor PNG or is turned.

    The image is decoded once, as in training, so a truncated file is reported by its own name.

    Args:
        data: the bytes of its file, in any format in FORMATS.
        path: the name of the file, for messages.
        exif: what to do if EXIF data says that it is to be shown turned.

    Raises:
        DataError: It is not an image or holds more than one, it has 16 bits per channel or too many pixels, or it is turned
            and `exif` is refuse.
    """
    with _opened(io.BytesIO(data), path) as image:
        if image.mode.startswith(("I", "F")):
            raise DataError(f"{path} has one channel of 16 or more bits: expected 8 bits a channel; convert it")
        turned = image.getexif().get(ORIENTATION, 1) != 1
        if turned and exif == "refuse":
            raise DataError(
                f"{path} has EXIF data that says to turn it: state whether its labels were drawn on the "
                "image as it is shown (--exif apply) or as it is stored (--exif ignore)"
            )
        turned = turned and exif == "apply"
        as_it_is = image.format in ("JPEG", "MPO", "PNG") and not turned
        if not as_it_is and image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise DataError(f"{path} holds several images: expected one; save the one that was labeled")
        if not as_it_is:
            data = _as_png(image, turned, path)
    try:
        decode_pixels(data)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be decoded ({error}): expected a whole image; restore or remove it") from error
    return data


def _as_png(image: Image.Image, turned: bool, path: Path | str) -> bytes:
    try:
        pixels = ImageOps.exif_transpose(image) if turned else image
        if pixels.mode not in ("L", "RGB"):
            pixels = pixels.convert("RGB")
        buffer = io.BytesIO()
        pixels.save(buffer, "PNG")  # lossless, unlike a second JPEG
        return buffer.getvalue()
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be decoded ({error}): expected a whole image; restore or remove it") from error


def _opened(file: Path | io.BytesIO, path: Path | str) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected an image; restore it") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large ({error}): cut it and its mask into tiles with --tile 1024") from error
    except (OSError, SyntaxError) as error:
        reason: object = error
        if isinstance(error, UnidentifiedImageError):  # its own message names an object in memory
            start = file.read_bytes()[:20] if isinstance(file, Path) else file.getvalue()[:20]
            reason = f"it begins with {start!r}" if start else "it is empty"
        raise DataError(
            f"{path} is not a readable image ({reason}): expected {', '.join(FORMATS)}; restore or convert it"
        ) from error
