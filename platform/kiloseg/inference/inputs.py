"""Finds the images that a command line names."""

from __future__ import annotations

import glob
import os
import urllib.parse
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath

from kiloseg.inference.images import SUFFIXES
from kiloseg.storage.credentials import shown


def find_images(words: Iterable[str]) -> list[tuple[str, str]]:
    """Returns each image with the unique name that its output files get.

    Args:
        words: files, folders (searched recursively for images), URLs, and patterns (`*`, `?`, `**`).

    Returns:
        Pairs of a name and a path or URL, in the order of the words, sorted within a folder.

    Raises:
        ValueError: a word matches no image, or two images have the same name.
    """
    found: dict[str, str] = {}
    for word in words:
        for name, image in _expand(word):
            if found.setdefault(name, image) != image:
                raise ValueError(
                    f"{found[name]} and {image} would both be written as {name}; predict them into different folders"
                )
    return list(found.items())


def _expand(word: str) -> list[tuple[str, str]]:
    if "://" in word:
        name = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(word).path)).stem
        if name in ("", ".", ".."):
            raise ValueError(f"{shown(word).partition('?')[0]} has no file name: expected the URL of an image")
        return [(name, word)]
    path = Path(word)
    if path.is_dir():
        found = list(_images_below(path))
        if not found:
            raise ValueError(f"{word} holds no images (expected files that end in {', '.join(SUFFIXES)})")
        return found
    if path.is_file():
        return [(path.stem, word)]
    matches = sorted(match for match in glob.glob(word, recursive=True) if Path(match).is_file())  # noqa: PTH207
    if not matches:
        raise ValueError(f"{word}: no such file or folder exists, and no file matches the pattern")
    return [(Path(match).stem, match) for match in matches]


def _images_below(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields name and path of each image, as strings: a million of them take a quarter of the memory of Path objects."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        inner = os.path.relpath(root, folder)
        prefix = "" if inner == "." else f"{Path(inner).as_posix()}/"
        for file in sorted(files):
            path = PurePath(file)
            if path.suffix.lower() in SUFFIXES:
                yield prefix + path.stem, f"{root}{os.sep}{file}"
