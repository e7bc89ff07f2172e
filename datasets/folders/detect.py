"""Detects which tool wrote the folder or file that a user names, and how to read it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.images import count_unread, is_image, walk
from folders import unread
from folders.annotations import RegionSource
from folders.arguments import Arguments
from folders.masks import MaskSource
from folders.parquet import ParquetSource
from folders.readings import LOOKS, Reading, Source
from kiloseg.storage.errors import DataError


def detect(arguments: Arguments) -> Source:
    """Detects what `arguments.path` is, and prints a line that says so.

    Raises:
        DataError: It is nothing known, or there are several readings, one of which --format chooses.
    """
    assert arguments.path is not None
    path = arguments.path
    if not path.exists():
        raise DataError(f"{path} does not exist: expected a folder or file that an annotation tool wrote")
    root = path if path.is_dir() else path.parent
    listed = list(walk(root)) if path.is_dir() else [path.name]
    root, files = (root, listed) if path.is_dir() else _around(path)
    looks = LOOKS if arguments.format is None else {arguments.format: LOOKS[arguments.format]}
    readings: dict[str, Reading] = {}
    failed: dict[str, DataError] = {}
    for name, look in looks.items():
        try:
            reading = look(arguments, root, listed, files)
        except DataError as error:
            failed[name] = error
        else:
            if reading is not None:
                readings[name] = reading
    if not readings and failed:
        raise next(iter(failed.values()))
    if not readings:
        kinds = ", ".join(LOOKS) if arguments.format is None else arguments.format
        if (sentence := unread.reason(path, listed)) is not None:
            raise DataError(sentence)
        raise DataError(
            f"{path} holds no known format ({kinds}): expected images with masks or annotations as a tool exports them; "
            "name them with --images and --masks or --annotations"
        )
    if len(readings) > 1:
        raise DataError(
            f"{path} can be read as {' or as '.join(readings)}: choose one with --format {next(iter(readings))}"
        )
    ((name, (line, make)),) = readings.items()
    for other, reason in failed.items():
        print(f"{path} cannot be read as {other}: {reason}")
    source = make()
    left_out = count_unread(iter(files))
    if left_out and not isinstance(source, ParquetSource):
        source = dataclasses.replace(source, left_out={**left_out, **source.left_out})
    print(f"{path} is read as {line} (--format {name}{_amounts_to(arguments, source)})")
    _check_flags(arguments, source, line)
    return source


def _amounts_to(arguments: Arguments, source: Source) -> str:
    """Returns the other flags that a reading amounts to, as they would be given."""
    if isinstance(source, RegionSource):
        return f" --overlap {arguments.overlap or source.overlap} --unlabeled {arguments.unlabeled}"
    if isinstance(source, MaskSource) and source.reader is not None:
        return ""
    return f" --names {source.table}"


def _check_flags(arguments: Arguments, source: Source, line: str) -> None:
    """Raises DataError if a flag was given that the files have no use for, since its value would be ignored."""
    regions = isinstance(source, RegionSource)
    has_background = regions or (isinstance(source, MaskSource) and source.reader is not None)
    files = [] if isinstance(source, ParquetSource) else source.files
    settings = source.settings if isinstance(source, RegionSource) else {}
    useless = {
        "label-field": arguments.label_field is not None and "label_field" not in settings,
        "annotator": arguments.annotator != "first" and "annotator" not in settings,
        "region-label": arguments.region_label != "first" and "region_label" not in settings,
        "ignore-id": has_background and arguments.ignore_id is not None,
        "reduce-zero-label": has_background and arguments.reduce_zero_label,
        "colormap": has_background and arguments.colormap is not None,
        "names": has_background and arguments.names is not None and arguments.names not in files,
        "columns": bool(arguments.columns) and not isinstance(source, ParquetSource),
        "overlap": not regions and arguments.overlap is not None,
        "unlabeled": not has_background and arguments.unlabeled != "ignore",
    }
    for flag, given in useless.items():
        if given:
            raise DataError(f"--{flag} means nothing for {line}: leave it out")


def _around(path: Path) -> tuple[Path, list[str]]:
    """Returns the folder of a file's images and its contents: the file's own folder, or its parent if that has no images."""
    files = list(walk(path.parent))
    if not any(map(is_image, files)) and any(map(is_image, above := list(walk(path.parent.parent)))):
        return path.parent.parent, above
    return path.parent, files
