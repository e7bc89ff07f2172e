"""Detects which tool wrote the folder or file that a user names, and how to read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from common.images import composed, count_unread, is_image, walk
from folders import coco_files, cvat, labelme, labelstudio, open_images, panoptic, parquet, supervisely, yolo
from folders.annotations import RegionSource
from folders.arguments import Arguments
from folders.coco import coco_source
from folders.layout import pair_beside, pair_by_folders
from folders.masks import MaskSource
from folders.parquet import ParquetSource
from kiloseg.storage.errors import DataError

TABLES = (
    *("labelmap.txt", "_classes.csv", "config_v2.0.json", "classes.csv", "classes.txt", "classes.json", "names.csv"),
    *("names.txt", "names.json", "labels.csv", "labels.txt", "labels.json", "class_names.txt", "class_names.csv"),
    *("label_names.txt", "obj.names", "label_colors.txt", "class_dict.csv", "data.yaml", "dataset.yaml", "data.yml"),
    *("id2label.json", "label2id.json"),
)
"""These are the names of tables of classes that tools write."""

Source = RegionSource | MaskSource | ParquetSource


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
    print(f"{path} is read as {line} (--format {name})")
    _check_flags(arguments, source, line)
    return source


def _check_flags(arguments: Arguments, source: Source, line: str) -> None:
    """Raises DataError if a flag was given that the files have no use for, since its value would be ignored."""
    regions = isinstance(source, RegionSource)
    has_background = regions or (isinstance(source, MaskSource) and source.reader is not None)
    files = [] if isinstance(source, ParquetSource) else source.files
    useless = {
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


Reading = tuple[str, Callable[[], Source]]


def _look_coco(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    jsons = _of_kind(arguments, listed, ".json", coco_files.is_coco)
    found = _by_split(arguments, jsons)
    if not found:
        return None
    return f"COCO json, {_names(found)}", lambda: coco_source(root, found, files)


def _look_panoptic(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    jsons = _of_kind(arguments, listed, ".json", panoptic.is_panoptic)
    found = _by_split(arguments, jsons)
    if not found:
        return None
    background = arguments.unlabeled == "background"
    return (
        f"panoptic COCO, {_names(found)}",
        lambda: panoptic.panoptic_source(root, found, files, background=background),
    )


def _look_labelme(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    jsons = _of_kind(arguments, listed, ".json", labelme.is_labelme)
    if not jsons or arguments.path == root / jsons[0]:
        return None
    images = [file for file in files if is_image(file)]
    return f"labelme, {len(jsons)} json files", lambda: labelme.labelme_source(root, jsons, images)


def _look_cvat(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    found = _by_split(arguments, _of_kind(arguments, listed, ".xml", cvat.is_cvat))
    if not found:
        return None
    return f"CVAT for images, {_names(found)}", lambda: cvat.cvat_source(root, found, files, arguments.given_splits)


def _look_yolo(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    tables = [file for file in listed if PurePosixPath(file).suffix in (".yaml", ".yml") and "/" not in file]
    tables += [file for file in listed if file in ("classes.txt", "obj.names")]
    images = [file for file in files if is_image(file)]
    texts = {composed(file): file for file in files if file.endswith(".txt")}
    labeled = [texts[text] for image in images if (text := yolo.label_in(image, texts)) is not None]
    table = arguments.names or next((root / file for file in tables), None)
    if not labeled or table is None:
        return None
    orphans = sum("labels" in file.split("/")[:-1] for file in set(texts.values()) - set(labeled))
    return (
        f"YOLO polygons, {len(labeled)} txt files with names from {table.name}",
        lambda: yolo.yolo_source(arguments, root, table, sorted(labeled), images, orphans),
    )


def _look_labelstudio(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    found = _by_split(arguments, _of_kind(arguments, listed, ".json", labelstudio.is_labelstudio))
    if not found:
        return None
    return f"Label Studio json, {_names(found)}", lambda: labelstudio.labelstudio_source(root, found, files)


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


def _look_open_images(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    tables = _of_kind(arguments, listed, ".csv", open_images.is_open_images)
    if not tables or _base(arguments) != root:
        return None
    return (
        f"masks of Open Images, {len(tables)} csv files",
        lambda: open_images.open_images_source(
            root, tables, files, arguments.given_splits, arguments.exif, arguments.names
        ),
    )


def _look_parquet(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    base = _base(arguments)
    tables = [file for file in listed if file.endswith(".parquet")]
    if not tables or not any(parquet.is_hub_parquet(base / file, arguments.columns) for file in tables):
        return None
    table = arguments.names or _table(base, list(walk(base)))
    return (
        f"Parquet of the Hugging Face Hub, {len(tables)} files, names from {table.name}",
        lambda: parquet.parquet_source(base, tables, table, arguments.given_splits, arguments.columns),
    )


def _base(arguments: Arguments) -> Path:
    """Returns the folder that the listed files are relative to."""
    assert arguments.path is not None
    return arguments.path if arguments.path.is_dir() else arguments.path.parent


def _of_kind(arguments: Arguments, listed: list[str], suffix: str, is_kind: Callable[[Path], bool]) -> list[str]:
    base = _base(arguments)
    return [file for file in listed if file.lower().endswith(suffix) and is_kind(base / file)]


def _by_split(arguments: Arguments, files: list[str]) -> dict[str, Path]:
    """Returns the file of annotations of each split that their names tell, or the only one under ""; raises DataError."""
    assert arguments.path is not None
    if not files or arguments.path.is_file():
        return {"": arguments.path} if files else {}
    return coco_files.find_jsons(arguments.path, arguments.given_splits, files)


def _names(found: Mapping[str, Path]) -> str:
    return ", ".join(f"{split or 'all'}: {file.name}" for split, file in found.items())


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
    "panoptic": _look_panoptic,
    "openimages": _look_open_images,
    "parquet": _look_parquet,
    "labelstudio": _look_labelstudio,
    "labelme": _look_labelme,
    "supervisely": _look_supervisely,
    "cvat": _look_cvat,
    "yolo": _look_yolo,
    "masks": _look_masks,
}
