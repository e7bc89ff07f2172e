"""Reads and writes the bank: classes, sprites and photographs of the emoji data set in one file of about 20 MB.

    bank.json     classes in the order of their ids, vendors, whom to name
    google.png    a sheet per vendor, 48 sprites of 64 x 64 pixels a row in the order of the classes; premultiplied
    00.jpg        photographs for the background

The bank is a plain tar. With it, a machine that has NumPy and Pillow can draw the data set without npm and other packages.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from kiloseg.data.writing.shard import file_sha256
from kiloseg.storage.errors import DataError
from synthetic.emoji_classes import Emoji, base_emoji, by_frequency, merge_twins
from synthetic.emoji_drawings import draw, read_drawings
from synthetic.emoji_packages import PACKAGES, Package, read_images, read_table
from synthetic.emoji_photographs import Photograph
from synthetic.emoji_sprites import SIDE, some_sprites_of, sprites_of, twins

FORMAT = "kiloseg-emoji-bank-1"
COLUMNS = 48
PHOTOGRAPH_SIDE = 480
"""The shorter side of the photographs in the bank, at most, in pixels: squares of 144 pixels and more are cut out of them."""


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Holds everything that scenes are drawn from."""

    classes: list[Emoji]
    """Class k + 1 is the k-th entry; class 0 is the background."""
    sprites: dict[str, np.ndarray]
    """Maps vendors to uint8 of shape (C, SIDE, SIDE, 4), premultiplied; a sprite is transparent if the vendor has no such
    emoji."""
    credits: dict[str, str]
    """Maps vendors to their package, license and attribution."""
    photographs: list[Photograph]


def make_bank(
    tarballs: dict[str, Path],
    photographs: Sequence[Photograph],
    packages: tuple[Package, ...] = PACKAGES,
    drawings: tuple[Package, ...] = (),
) -> Bank:
    """Chooses the classes and decodes every vendor's picture of each class once.

    Args:
        tarballs: maps vendors to their files.
        photographs: the photographs for the background.
        packages: the packages of vendors that decide, together, which classes there are.
        drawings: the packages of vendors that draw in SVG and may lack classes.

    Raises:
        DataError: A tarball or picture cannot be read.
        ModuleNotFoundError: There are `drawings`, and resvg_py is not installed.
    """
    pictures = {package.vendor: read_images(tarballs[package.vendor], package) for package in packages}
    emoji = base_emoji(read_table(tarballs[packages[0].vendor]), pictures.values())
    codes = [one.code for one in emoji]
    sprites = {vendor: sprites_of(files, codes, vendor) for vendor, files in pictures.items()}
    classes = by_frequency(merge_twins(emoji, [pair for drawn in sprites.values() for pair in twins(drawn)]))
    rows = [codes.index(one.code) for one in classes]
    chosen = [one.code for one in classes]
    drawn_too = {}
    for vendor, files in (read_drawings(tarballs, drawings) if drawings else {}).items():
        drawn_too[vendor] = some_sprites_of(draw(files, chosen, vendor), chosen, vendor)
    return Bank(
        classes=classes,
        sprites={vendor: drawn[rows] for vendor, drawn in sprites.items()} | drawn_too,
        credits={package.vendor: f"{package.spec} (npm): {package.license}" for package in (*packages, *drawings)},
        photographs=list(photographs),
    )


def write_bank(path: Path, bank: Bank) -> None:
    """Writes the file; the same bank gives the same bytes on the same machine."""
    description = {
        "format": FORMAT,
        "classes": [dataclasses.asdict(one) for one in bank.classes],
        "credits": bank.credits,
        "photographs": [[one.name, one.credit, one.sha256] for one in bank.photographs],
    }
    files = {"bank.json": json.dumps(description, indent=1).encode()}
    for vendor, sprites in bank.sprites.items():
        files[f"{vendor}.png"] = _encode(_sheet(sprites), "PNG")
    for number, photograph in enumerate(bank.photographs):
        files[f"{number:02d}.jpg"] = _encode(_shrunk(photograph.image), "JPEG")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    partial.replace(path)


def read_bank(path: Path) -> tuple[Bank, str]:
    """Reads the bank in a file, and the file's sha256.

    Raises:
        DataError: There is no such file, or it is not a complete bank.
    """
    remedy = f"delete it, and datasets/emoji.py --bank {shlex.quote(str(path))} will create it again"
    try:
        digest = file_sha256(path)
        with tarfile.open(path, "r:") as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
        description = json.loads(files["bank.json"])
        if description["format"] != FORMAT:
            raise DataError(f"{path} is a bank of format {description['format']!r}, expected {FORMAT!r}; {remedy}")
        classes = [Emoji(**{**one, "twins": tuple(one["twins"])}) for one in description["classes"]]
        sprites = {vendor: _cut(files[f"{vendor}.png"], len(classes)) for vendor in description["credits"]}
        photographs = [
            Photograph(name=name, credit=credit, sha256=sha256, image=_photograph(files[f"{number:02d}.jpg"]))
            for number, (name, credit, sha256) in enumerate(description["photographs"])
        ]
        return Bank(classes=classes, sprites=sprites, credits=description["credits"], photographs=photographs), digest
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected a bank made by datasets/emoji.py") from None
    except (tarfile.TarError, UnidentifiedImageError, OSError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a complete bank ({type(error).__name__}: {error}); {remedy}") from error
    except DataError:
        raise
    except ValueError as error:  # not JSON, or a sheet of another size
        raise DataError(f"{path} is not a complete bank ({error}); {remedy}") from error


def _sheet(sprites: np.ndarray) -> Image.Image:
    """Puts all sprites in one picture."""
    rows = -(-len(sprites) // COLUMNS)
    cells = np.zeros((rows * COLUMNS, SIDE, SIDE, 4), np.uint8)
    cells[: len(sprites)] = sprites
    sheet = cells.reshape(rows, COLUMNS, SIDE, SIDE, 4).swapaxes(1, 2).reshape(rows * SIDE, COLUMNS * SIDE, 4)
    return Image.fromarray(sheet)


def _cut(picture: bytes, number: int) -> np.ndarray:
    """Returns the sprites of a sheet; raises ValueError."""
    sheet = np.asarray(Image.open(io.BytesIO(picture), formats=("PNG",)))
    rows = -(-number // COLUMNS)
    if sheet.shape != (rows * SIDE, COLUMNS * SIDE, 4):
        raise ValueError(f"a sheet of shape {sheet.shape}: expected {(rows * SIDE, COLUMNS * SIDE, 4)}")
    cells = sheet.reshape(rows, SIDE, COLUMNS, SIDE, 4).swapaxes(1, 2).reshape(rows * COLUMNS, SIDE, SIDE, 4)
    return cells[:number]


def _photograph(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture), formats=("JPEG",)).convert("RGB")


def _shrunk(image: Image.Image) -> Image.Image:
    scale = min(1.0, PHOTOGRAPH_SIDE / min(image.size))
    width, height = (round(scale * side) for side in image.size)
    return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()
