"""Reads images of many formats, applies their EXIF orientation, and reports broken files."""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kiloseg.storage.credentials import shown
from kiloseg.storage.filesystems import holder
from kiloseg.storage.web import is_web_address, read_web

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
"""Suffixes of the files that count as images when a folder is searched."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_OPENING = threading.Lock()


def as_pixels(image: np.ndarray | Image.Image | Path | str) -> np.ndarray:
    """Returns the uint8 pixels (H, W, 3) of a file (by path or URL), a Pillow image or an array.

    Raises:
        ValueError: it is no image, or not one of 8 bits per channel; the message names the file.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an array of {image.dtype} and shape {image.shape}: expected uint8 of shape (H, W, 3)")
        return image
    if isinstance(image, Image.Image):
        return _upright(image, "the image")
    name, content = _read(image)
    return decoded_pixels(content, name)


def decoded_pixels(content: bytes, name: str) -> np.ndarray:
    """Does the same as `as_pixels` for the content of an image file, whose name is used in messages."""
    try:
        with _opened(content) as opened:
            return _upright(opened, name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{name} says that it has more than {Image.MAX_IMAGE_PIXELS:,} pixels; if that is intended, raise --max-pixels "
            "(PIL.Image.MAX_IMAGE_PIXELS)"
        ) from error
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        raise ValueError(f"{name} cannot be read as an image ({error}); expected {', '.join(FORMATS)}") from error


def _opened(content: bytes) -> Image.Image:
    # Filters of warnings belong to the process, so that one thread's would end another's.
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content), formats=FORMATS)


def _read(image: Path | str) -> tuple[str, bytes]:
    """Returns the name of an image file in messages, and its content."""
    if isinstance(image, str) and is_web_address(image):
        return shown(image).partition("?")[0], read_web(image)
    folder, name = holder(image)
    try:
        return folder.at(name), folder.read(name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise ValueError(
            f"{folder.at(name)} cannot be read ({error.strerror or error}): expected an image file"
        ) from error


def _upright(image: Image.Image, name: str) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{name} has values of mode {image.mode}: expected 8 bits a channel")
    turned = ImageOps.exif_transpose(image)
    if turned.has_transparency_data:
        turned = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
    return np.asarray(turned.convert("RGB"))
