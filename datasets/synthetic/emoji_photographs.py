"""Provides the photographs behind the scenes of the emoji data set, with the attribution for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from kiloseg.data.writing.shard import file_sha256
from kiloseg.storage.errors import DataError
from synthetic.backgrounds import packaged_photograph

_CC_BY_2 = "CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/), as shipped by scikit-learn"
_SKIMAGE = "as shipped by scikit-image"
PACKAGED = (
    ("sklearn", "china.jpg", f"danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/, {_CC_BY_2}"),
    ("skimage", "chelsea.png", f"Stefan van der Walt, CC0, {_SKIMAGE}"),
    ("skimage", "coffee.png", f"Rachel Michetti, courtesy of Pikolo Espresso Bar, CC0, {_SKIMAGE}"),
    ("skimage", "astronaut.png", f"NASA, public domain, {_SKIMAGE}"),
    ("skimage", "rocket.jpg", f"SpaceX, public domain, {_SKIMAGE}"),
    (
        "sklearn",
        "flower.jpg",
        f"credited to danielbuechele, https://www.flickr.com/photos/vultilion/6056698931/, {_CC_BY_2}",
    ),
    ("skimage", "grass.png", f"linolafett on DeviantArt, CC0, {_SKIMAGE}"),
    ("skimage", "gravel.png", f"CC0Textures, Gravel04, CC0, {_SKIMAGE}"),
    ("skimage", "brick.png", f"CC0Textures, Bricks25, CC0, {_SKIMAGE}"),
)
"""These photographs are shipped by installed packages: package, name, attribution."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
CREDITS = ("attribution", "copying", "copyright", "license")
_UNCREDITED = "its folder names neither author nor licence; find out before you pass the data set on"


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """Holds a background photograph."""

    name: str
    credit: str
    """The attribution and the license."""
    sha256: str
    """The sha256 of the file it was read from, hexadecimal."""
    image: Image.Image


def packaged() -> list[Photograph]:
    """Returns the photographs that every installation has; raises ModuleNotFoundError if a package is missing."""
    return [_read(packaged_photograph(package, name), credit) for package, name, credit in PACKAGED]


def in_folder(folder: Path) -> list[Photograph]:
    """Returns all photographs of a folder by name, credited by its file ATTRIBUTION, COPYING, copyright or LICENSE.

    Raises:
        DataError: There are none, or one cannot be read.
    """
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    paths = [path for path in entries if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise DataError(
            f"{folder} holds no photographs; expected a folder with files that end in {', '.join(SUFFIXES)}"
        )
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in entries if path.stem.lower() in CREDITS]
    credit = " ".join(" ".join(texts).split()) or _UNCREDITED
    return [_read(path, credit) for path in paths]


def photographs_of(split: str, photographs: list[Photograph]) -> list[Photograph]:
    """Keeps every third photograph for validation; if there are fewer than three, all splits have all."""
    if len(photographs) < 3:
        return photographs
    return [one for number, one in enumerate(photographs) if (number % 3 == 2) == (split != "train")]


def by_credit(photographs: list[Photograph]) -> dict[str, list[str]]:
    """Maps each credit to the names of all photographs that it is for, since a folder's credit may be long."""
    credits: dict[str, list[str]] = {}
    for one in photographs:
        credits.setdefault(one.credit, []).append(one.name)
    return credits


def _read(path: Path, credit: str) -> Photograph:
    try:
        image = Image.open(path).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} cannot be read as a photograph ({error}); remove it from its folder") from error
    return Photograph(name=path.name, credit=credit, sha256=file_sha256(path), image=image)
