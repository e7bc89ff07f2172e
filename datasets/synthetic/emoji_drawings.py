"""Finds vendors' SVG pictures by code points or by name, and draws them as PNG."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from kiloseg.storage.errors import DataError
from synthetic.emoji_packages import Package, code_of, read_images, read_member

SIDE = 256
"""The side of a drawing in pixels: four times that of a sprite, to which drawings are shrunk like vendors' larger pictures."""
NAMES = "package/data/openmoji.json"
"""In OpenMoji's package, this file has code points and CLDR short name of every emoji."""
ICONS = "package/icons.json"
"""In packages of the Iconify project, this file has icons by the CLDR short name that was current when the package was made."""


def read_drawings(tarballs: dict[str, Path], packages: tuple[Package, ...]) -> dict[str, dict[str, bytes]]:
    """Maps vendors to SVG files by the code of their emoji; a vendor may lack emoji.

    Args:
        tarballs: maps vendors to their files.
        packages: the packages; one of them is OpenMoji's, which has the names of the icons.

    Raises:
        DataError: A tarball cannot be read or holds something else.
    """
    named = next(package for package in packages if package.vendor == "openmoji")
    names = read_names(tarballs[named.vendor])
    drawings = {}
    for package in packages:
        path = tarballs[package.vendor]
        drawings[package.vendor] = read_icons(path, names) if package.images == ICONS else read_images(path, package)
    return drawings


def read_names(tarball: Path) -> dict[str, str]:
    """Maps the code of each emoji to its CLDR short name in the form of icon names: lower case ASCII letters, digits, hyphens."""
    try:
        entries = json.loads(read_member(tarball, NAMES))
        return {code_of(entry["hexcode"]): icon_name(entry["annotation"]) for entry in entries}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{NAMES} of {tarball} cannot be read ({type(error).__name__}: {error})") from error


def icon_name(name: str) -> str:
    """Writes a CLDR short name as Iconify does: accents and apostrophes are left out, so "piñata" is pinata."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower().replace("'", "")
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")


def read_icons(tarball: Path, names: dict[str, str]) -> dict[str, bytes]:
    """Maps the code of each emoji of `names` that the package has an icon for to its SVG.

    An alias stands for its parent; an alias that mirrors or turns its parent is skipped.
    """
    try:
        content = json.loads(read_member(tarball, ICONS))
        icons: dict[str, Any] = content["icons"]
        for alias, settings in content.get("aliases", {}).items():
            if set(settings) == {"parent"} and settings["parent"] in icons:
                icons.setdefault(alias, icons[settings["parent"]])
        width, height = content.get("width", 16), content.get("height", 16)
        return {
            code: (
                f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 '
                f'{icons[name].get("width", width)} {icons[name].get("height", height)}">{icons[name]["body"]}</svg>'
            ).encode()
            for code, name in names.items()
            if name in icons
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{ICONS} of {tarball} cannot be read ({type(error).__name__}: {error})") from error


def draw(svg_files: dict[str, bytes], codes: list[str], vendor: str) -> dict[str, bytes]:
    """Draws those of `codes` that the vendor has as PNG pictures of SIDE x SIDE pixels.

    Raises:
        DataError: An SVG file cannot be drawn.
        ModuleNotFoundError: resvg_py is not installed.
    """
    import resvg_py  # imported here because drawing from a bank does not need it

    pictures = {}
    for code in codes:
        if code in svg_files:
            try:
                pictures[code] = resvg_py.svg_to_bytes(
                    svg_string=svg_files[code].decode(), width=SIDE, height=SIDE, skip_system_fonts=True
                )
            except ValueError as error:
                raise DataError(
                    f"the drawing of emoji {code} by {vendor} cannot be drawn ({error}); expected the contents of npm's package"
                ) from error
    return pictures
