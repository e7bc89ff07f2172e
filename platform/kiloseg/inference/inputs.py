"""Finds the images that a command line names."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from kiloseg.inference.images import SUFFIXES


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
        return [(PurePosixPath(word.partition("?")[0]).stem, word)]
    path = Path(word)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise ValueError(f"{word} holds no images (expected files that end in {', '.join(SUFFIXES)})")
        return [(file.relative_to(path).with_suffix("").as_posix(), str(file)) for file in files]
    if path.is_file():
        return [(path.stem, word)]
    matches = sorted(match for match in glob.glob(word, recursive=True) if Path(match).is_file())  # noqa: PTH207
    if not matches:
        raise ValueError(f"{word}: no such file or folder exists, and no file matches the pattern")
    return [(Path(match).stem, match) for match in matches]
