"""Detects which tool wrote the folder or file that a user names, and how to read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from common.images import count_unread, is_image, walk
from folders import coco_files, cvat, labelme, labelstudio, supervisely, yolo
from folders.annotations import RegionSource
from folders.arguments import Arguments
from folders.coco import coco_source
from folders.layout import pair_beside, pair_by_folders
from folders.masks import MaskSource
from kiloseg.storage.errors import DataError

TABLES = (
    *("labelmap.txt", "_classes.csv", "config_v2.0.json", "classes.csv", "classes.txt", "classes.json", "names.csv"),
    *("names.txt", "names.json", "labels.csv", "labels.txt", "labels.json", "class_names.txt", "class_names.csv"),
    *("label_names.txt", "obj.names", "label_colors.txt", "class_dict.csv", "data.yaml", "dataset.yaml", "data.yml"),
)
"""These are the names of tables of classes that tools write."""

Source = RegionSource | MaskSource


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
    readings = {
        name: found for name, look in LOOKS.items() if (found := look(arguments, root, listed, files)) is not None
    }
    if arguments.format is not None:
        readings = {name: found for name, found in readings.items() if name == arguments.format}
    if not readings:
        kinds = ", ".join(LOOKS) if arguments.format is None else arguments.format
        raise DataError(
            f"{path} holds no known format ({kinds}): expected images with masks or annotations as a tool exports them; "
            "name them with --images and --masks or --annotations"
        )
    if len(readings) > 1:
        raise DataError(
            f"{path} can be read as {' or as '.join(readings)}: choose one with --format {next(iter(readings))}"
        )
    ((name, (line, make)),) = readings.items()
    source = make()
    left_out = count_unread(iter(files))
    if left_out:
        source = dataclasses.replace(source, left_out={**left_out, **source.left_out})
    print(f"{path} is read as {line} (--format {name})")
    return source


def _around(path: Path) -> tuple[Path, list[str]]:
    """Returns the folder of a file's images and its contents: the file's own folder, or its parent if that has no images."""
    files = list(walk(path.parent))
    if not any(map(is_image, files)) and any(map(is_image, above := list(walk(path.parent.parent)))):
        return path.parent.parent, above
    return path.parent, files


Reading = tuple[str, Callable[[], Source]]


def _look_coco(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    path = arguments.path
    assert path is not None
    base = path if path.is_dir() else path.parent
    jsons = [file for file in listed if file.endswith(".json") and coco_files.is_coco(base / file)]
    if not jsons:
        return None
    found = {"": path} if path.is_file() else coco_files.find_jsons(path, arguments.given_splits, jsons)
    names = ", ".join(f"{split or 'all'}: {file.name}" for split, file in found.items())
    return f"COCO json, {names}", lambda: coco_source(root, found, files)


def _look_labelme(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    if arguments.path is None or not arguments.path.is_dir():
        return None
    jsons = [file for file in listed if file.endswith(".json") and labelme.is_labelme(root / file)]
    images = [file for file in files if is_image(file)]
    if not jsons:
        return None
    return f"labelme, {len(jsons)} json files", lambda: labelme.labelme_source(root, jsons, images)


def _look_cvat(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    path = arguments.path
    assert path is not None
    base = path if path.is_dir() else path.parent
    xmls = [base / file for file in listed if file.endswith(".xml") and cvat.is_cvat(base / file)]
    if not xmls:
        return None
    if len(xmls) > 1:
        raise DataError(f"{xmls[0]} and {xmls[1]} are both annotations of CVAT: name one of them")
    return f"CVAT for images, {xmls[0].name}", lambda: cvat.cvat_source(root, xmls[0], files)


def _look_yolo(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    yamls = [file for file in listed if PurePosixPath(file).suffix in (".yaml", ".yml") and "/" not in file]
    tables = [file for file in listed if file in ("classes.txt", "obj.names")]
    images = [file for file in files if is_image(file)]
    texts = {file for file in files if file.endswith(".txt")}
    labeled = [text for image in images if (text := yolo.label_of(image)) in texts]
    table = arguments.names or next((root / file for file in (*yamls, *tables)), None)
    if not labeled or table is None:
        return None
    return (
        f"YOLO polygons, {len(labeled)} txt files with names from {table.name}",
        lambda: yolo.yolo_source(root, table, sorted(labeled), images, arguments.exif),
    )


def _look_labelstudio(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    path = arguments.path
    assert path is not None
    base = path if path.is_dir() else path.parent
    jsons = [base / file for file in listed if file.endswith(".json") and labelstudio.is_labelstudio(base / file)]
    if not jsons:
        return None
    if len(jsons) > 1:
        raise DataError(f"{jsons[0]} and {jsons[1]} are both exports of Label Studio: name one of them")
    return f"Label Studio json, {jsons[0].name}", lambda: labelstudio.labelstudio_source(root, jsons[0], files)


def _look_supervisely(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    if "meta.json" not in listed:
        return None
    images = [file for file in files if is_image(file)]
    anns = [file for file in listed if file.endswith(".json") and PurePosixPath(file).parent.name == "ann"]
    if not anns:
        return None
    return (
        f"a project of Supervisely, {len(anns)} json files",
        lambda: supervisely.supervisely_source(root, anns, images),
    )


def _look_masks(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    if arguments.path is None or not arguments.path.is_dir():
        return None
    pairs = pair_by_folders(files) or pair_beside(files)
    if not pairs:
        return None
    table = arguments.names or _table(root, listed)
    return (
        f"{len(pairs)} images with masks, names from {table.name}",
        lambda: MaskSource(
            images=root, masks=root, pairs=pairs, table=table, with_colors=table.name != "config_v2.0.json"
        ),
    )


def _table(root: Path, listed: list[str]) -> Path:
    """Returns the table of classes; raises DataError if there is none, or several that differ."""
    names = {file: PurePosixPath(file).name for file in listed}
    for wanted in TABLES:
        found = [root / file for file, name in names.items() if name.lower() == wanted]
        if not found:
            continue
        other = next((table for table in found[1:] if table.read_bytes() != found[0].read_bytes()), None)
        if other is not None:
            raise DataError(
                f"{found[0]} and {other} differ: expected the same classes in all splits; name one with --names"
            )
        return found[0]
    raise DataError(
        f"{root} has images and masks, but no table of class names ({', '.join(TABLES[:6])}, ...): name one with --names, such "
        "as a csv with the columns id and name"
    )


LOOKS: dict[str, Callable[[Arguments, Path, list[str], list[str]], Reading | None]] = {
    "coco": _look_coco,
    "labelstudio": _look_labelstudio,
    "labelme": _look_labelme,
    "supervisely": _look_supervisely,
    "cvat": _look_cvat,
    "yolo": _look_yolo,
    "masks": _look_masks,
}
