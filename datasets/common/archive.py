"""Builds a published archive of images with masks: the part that the archives' own modules share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.label_table import lookup, to_class_ids
from common.pairs import Pair, Place, build_pairs, find_splits, read_ids
from kiloseg.data.description import DatasetInfo
from kiloseg.data.writing.output import Output


@dataclass(frozen=True, kw_only=True)
class ArchiveOutput(Output):
    """Holds the arguments that all builders of archives share."""

    root: Path
    """The folder into which the archives were unpacked."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Describes what is known of an archive before it is opened."""

    name: str
    """The name of the data set; its command is datasets/NAME.py."""
    version: int
    """The version is raised with every change that changes a sample."""
    places: Mapping[str, Place]
    """Where each split is, and how large the complete split is."""
    list_pairs: Callable[[Path, str], list[Pair]]
    """Lists all images of a split, in the archive at a root, with the masks that they should have."""
    layout: str
    """A sentence that says what to unpack where."""
    ids: str
    """A sentence that says which ids its masks hold."""
    license: str
    read_ids: Callable[[Path], np.ndarray] = read_ids
    """Reads ids of shape (H, W) from a mask's file."""


def build_archive(
    archive: Archive,
    arguments: ArchiveOutput,
    classes: list[str],
    class_ids: Mapping[int, int],
    *,
    background: int | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> DatasetInfo:
    """Builds the splits of an archive that exist.

    Args:
        archive: the archive to build.
        arguments: the folder of the archive, the output location and further options.
        classes: a name per class id.
        class_ids: maps raw ids to class ids, or to IGNORE_ID.
        background: the class id of the background, if there is one.
        recipe: further settings that determine the bytes.

    Raises:
        DataError: Files are missing or hold something else, or as for `build`.
    """
    splits = find_splits(archive.name, arguments.root, archive.places, archive.list_pairs, archive.layout)
    info = DatasetInfo(
        name=archive.name,
        classes=classes,
        background=background,
        license=archive.license,
        command=arguments.command(f"datasets/{archive.name}.py"),
        recipe={"builder": archive.name, "version": archive.version, **(recipe or {})},
    )
    read = functools.partial(read_mask, archive_ids=archive.ids, read=archive.read_ids, table=lookup(class_ids))
    return build_pairs(arguments, info, arguments.root, splits, read)


def read_mask(path: Path, *, archive_ids: str, read: Callable[[Path], np.ndarray], table: np.ndarray) -> np.ndarray:
    """Reads uint16 class ids of shape (H, W) from a mask's file; raises DataError."""
    return to_class_ids(read(path), table, path, f"{archive_ids}; restore the file")
