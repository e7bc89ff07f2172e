"""Reads masks as tools write them: ids in 8 or 16 bits, palettes, gray in three channels, or the colors of a table."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.class_names import Color, read_name_table
from common.images import ORIENTATION, Exif
from common.label_table import MAX_RAW_ID, lookup, to_class_ids
from common.pairs import gray_bits
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.writing.report import NARROW, UNANNOTATED, WHITE
from kiloseg.storage.errors import DataError

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
FORMATS = ("PNG", "TIFF", "BMP", "GIF")


@dataclass(frozen=True, kw_only=True)
class MaskReader:
    """Reads a mask's file into class ids; picklable."""

    names: dict[int, str]
    """Maps raw ids to names; one with an empty name is ignored. Class ids are the ranks of those that have a name."""
    colors: dict[Color, int] = field(default_factory=dict)
    """Maps colors to raw ids, for colored masks."""
    table: Path
    """The file that the names are from, for messages."""
    replaced: dict[int, int | None] = field(default_factory=dict)
    """Maps ids in masks to other raw ids, or to None if they are ignored; others are raw ids as they are."""
    ignore_id: int | None = None
    """The raw id that means ignore. Without one, 255 does in 8-bit masks if no class has it. 65,535 always does."""
    reduce_zero: bool = False
    """Ignores raw id 0 and lowers all others by one, like MMSegmentation's reduce_zero_label."""
    exif: Exif = "refuse"

    def recipe(self) -> dict[str, Any]:
        """Returns everything that affects the class ids, as JSON-able values."""
        return {
            "names": sorted(self.names.items()),
            "colors": sorted([*color, raw_id] for color, raw_id in self.colors.items()),
            **({"replaced": sorted(map(list, self.replaced.items()))} if self.replaced else {}),
            "ignore_id": self.ignore_id,
            "reduce_zero_label": self.reduce_zero,
            "exif": self.exif,
        }

    @property
    def classes(self) -> list[str]:
        """Returns one name per class id."""
        return [self.names[raw_id] for raw_id in sorted(self.names) if self.names[raw_id]]

    def __call__(self, path: Path) -> tuple[np.ndarray, dict[str, int]]:
        """Returns uint16 class ids of shape (H, W), and what counts for the report: see `of_ids`.

        Raises:
            DataError: There is no such file, it is not a mask, or an id or color is not in the table.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"{path} is missing: expected a mask; restore it") from None
        return self.read(data, path)

    def read(self, data: bytes, path: Path | str) -> tuple[np.ndarray, dict[str, int]]:
        """Does what `__call__` does for the bytes of a file; `path` is its name, for messages."""
        return self.of_ids(self._raw(io.BytesIO(data), path), path)

    def of_ids(self, raw_HW: np.ndarray, path: Path | str) -> tuple[np.ndarray, dict[str, int]]:
        """Does what `__call__` does for raw ids of shape (H, W) and any integer type.

        Counted are masks in which 255 was ignored only because no class has that id, masks of 8 bits though a class has an id
        above 255, and masks that are ignored throughout.
        """
        ignore_id = self.ignore_id
        white = ignore_id is None and raw_HW.dtype == np.uint8 and 255 not in self.names
        if white:
            ignore_id = 255
        shift = int(self.reduce_zero)
        ranks = {
            raw_id: rank for rank, raw_id in enumerate(raw_id for raw_id in sorted(self.names) if self.names[raw_id])
        }
        known = {raw_id + shift: ranks.get(raw_id, IGNORE_ID) for raw_id in self.names}
        known |= dict.fromkeys(
            [IGNORE_ID, *([0] if shift else []), *([] if ignore_id is None else [ignore_id])], IGNORE_ID
        )
        known |= {
            raw_id + shift: IGNORE_ID if new is None else ranks.get(new, IGNORE_ID)
            for raw_id, new in self.replaced.items()
        }
        advice = f"Add it to {self.table}, with an empty name to ignore it, or name it with --ignore-id"
        mask_HW = to_class_ids(raw_HW, lookup(known), path, advice)
        highest = max((raw_id for raw_id in ranks), default=0)
        counts = {
            WHITE: int(white and bool((raw_HW == 255).any())),
            NARROW: int(raw_HW.dtype == np.uint8 and highest + shift > 255),
            UNANNOTATED: int(bool((mask_HW == IGNORE_ID).all())),
        }
        return mask_HW, counts

    def _raw(self, file: io.BytesIO, path: Path | str) -> np.ndarray:
        try:
            with Image.open(file, formats=FORMATS) as image:
                pictures = getattr(image, "n_frames", 1)
                if pictures > 1:
                    raise DataError(f"{path} holds {pictures} images: expected one mask; save the one that is meant")
                turned = image.getexif().get(ORIENTATION, 1) != 1
                if turned and self.exif == "refuse":
                    raise DataError(
                        f"{path} is a mask whose EXIF data says to turn it: state whether to turn it and its image "
                        "(--exif apply) or not (--exif ignore)"
                    )
                image.load()
                upright = ImageOps.exif_transpose(image) if turned and self.exif == "apply" else image
                bits = gray_bits(file) if image.mode == "L" and image.format == "PNG" else 8
                return self._ids(upright, bits, path)
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise DataError(
                f"{path} is too large ({error}): cut it and its image into tiles with --tile 1024"
            ) from error
        except UnidentifiedImageError:
            raise DataError(
                f"{path} is not a mask, whatever its suffix: expected a file of {', '.join(FORMATS)}, without loss; convert "
                "what it was drawn in"
            ) from None
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                f"{path} is not a readable mask ({error}): expected a whole file of {', '.join(FORMATS)}; restore or convert it"
            ) from error

    def _ids(self, image: Image.Image, bits: int, path: Path | str) -> np.ndarray:
        if self.colors and image.mode not in ("1", "L") and not image.mode.startswith("I"):
            return self._from_colors(np.asarray(image.convert("RGB")), path)
        if image.mode == "L" and bits < 8:
            return np.asarray(image) // (255 // (2**bits - 1))  # Pillow spreads the values over 0 to 255
        if image.mode == "P" and (grays := _grays(image)) is not None:
            return self._of_grays(np.asarray(image), grays, path)
        if image.mode in ("1", "L", "P"):
            return np.asarray(image).astype(np.uint8)
        if image.mode == "F":
            return np.asarray(image)  # whole numbers, or refused when they are looked up
        if image.mode.startswith("I"):
            ids_HW = np.asarray(image)
            if ids_HW.min(initial=0) < 0 or ids_HW.max(initial=0) > MAX_RAW_ID:
                raise DataError(f"{path}: mask has ids {ids_HW.min()} to {ids_HW.max()}: expected 0 to {MAX_RAW_ID}")
            return ids_HW.astype(np.uint16)
        if image.mode in ("RGB", "RGBA", "LA"):
            _check_opaque(image, path)
            pixels_HW3 = np.asarray(image.convert("RGB"))
            gray_HW = pixels_HW3[..., 0]
            if (gray_HW == pixels_HW3[..., 1]).all() and (gray_HW == pixels_HW3[..., 2]).all():
                return gray_HW
        raise DataError(
            f"{path} is a {image.mode} image of {len(image.getbands())} channels: expected ids in one channel, or a table of "
            f"names with a color for each class (columns name, r, g, b); {self.table} has none "
            "(--colormap voc if the colors are those of PASCAL VOC)"
        )

    def _of_grays(self, index_HW: np.ndarray, grays: np.ndarray, path: Path | str) -> np.ndarray:
        """Returns the indices or the grays of a palette of grays, whichever are ids of the table.

        Programs that make files smaller write gray masks so, and GIF has no other form, while others color ids gray.

        Raises:
            DataError: Both or neither may be ids.
        """
        gray_HW = grays[index_HW]
        known = {*self.names, *self.replaced, *([] if self.ignore_id is None else [self.ignore_id])}
        values = [set(np.unique(values_HW).tolist()) for values_HW in (index_HW, gray_HW)]
        if values[1] - {0, 255}:  # 255 alone is no ignored boundary but the object
            known.add(255)
        fits = [ids <= known for ids in values]
        if fits[0] == fits[1]:
            other = index_HW[gray_HW != index_HW][0]
            raise DataError(
                f"{path} has a palette of grays, in which index {other} is gray {grays[other]}: either may be the id, since "
                "programs that make files smaller write gray masks so; save it as a grayscale PNG that holds the ids"
            )
        return (index_HW if fits[0] else gray_HW).astype(np.uint8)

    def _from_colors(self, pixels_HW3: np.ndarray, path: Path | str) -> np.ndarray:
        packed = sorted((red << 16 | green << 8 | blue, raw_id) for (red, green, blue), raw_id in self.colors.items())
        keys, raw_ids = (np.array(column, np.int64) for column in zip(*packed, strict=True))
        wide_HW3 = pixels_HW3.astype(np.int64)
        colors_HW = wide_HW3[..., 0] << 16 | wide_HW3[..., 1] << 8 | wide_HW3[..., 2]
        place_HW = np.searchsorted(keys, colors_HW).clip(max=len(keys) - 1)
        unknown_HW = keys[place_HW] != colors_HW
        if unknown_HW.any():
            red, green, blue = pixels_HW3[unknown_HW][0].tolist()
            raise DataError(
                f"{path}: mask has color {red},{green},{blue} in {int(unknown_HW.sum())} pixels, which {self.table} does not "
                "have: expected the colors of its classes and no shades between them; add it, or save the mask without "
                "smoothing and not as JPEG"
            )
        return raw_ids[place_HW].astype(np.uint16)


BACKGROUNDS = (
    "background",
    "unlabeled",
    "unlabelled",
    "void",
    "ignore",
    "other",
    "none",
    "empty",
    "undefined",
    "unknown",
)


def check_first(table: Path, pairs: Mapping[str, str]) -> None:
    """Raises DataError if label_colors.txt does not tell what masks hold, as datumaro writes it.

    In KITTI id 0 is both the first class and no annotation; without colors, those of CamVid's masks count from 1.
    """
    content = read_name_table(table)
    first = content.names.get(0, "")
    if any("/semantic/" in f"/{mask}" for mask in pairs.values()):
        if first and re.sub(r"[^a-z]", "", first.lower()) not in BACKGROUNDS:
            raise DataError(
                f"{table}: id 0 is {first!r}, and datumaro also writes 0 where there is no annotation, so its masks do not tell "
                f"them apart: export again with a first class background, or say --ignore-id 0 to ignore both, or --names {table} "
                f"if every pixel of id 0 is {first!r}"
            )
    elif not content.colors:
        raise DataError(
            f"{table} has no colors, so nothing tells which class a color in its masks is: export again with colors, or name a "
            "table with the columns name, r, g, b with --names"
        )


def _grays(image: Image.Image) -> np.ndarray | None:
    """Returns the gray of each index of a palette of grays alone, or None if there are colors or the index is always the gray."""
    palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    if not len(palette) or int(used.max(initial=0)) >= len(palette) or (palette != palette[:, :1]).any():
        return None
    return palette[:, 0] if (palette[used, 0] != used).any() else None


def _check_opaque(image: Image.Image, path: Path | str) -> None:
    """Raises DataError if an image without colors has transparent pixels: then its mask may be the transparency."""
    if "A" in image.getbands() and np.asarray(image.getchannel("A")).min(initial=255) < 255:
        raise DataError(
            f"{path} has transparent pixels: ids are expected in its gray values, and objects that are drawn by transparency have "
            "none; save a mask of one channel that holds the ids"
        )
