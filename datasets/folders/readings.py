"""Looks in the files of a folder for what each tool writes: whether they can be read as its format, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from common.class_names import read_names
from common.images import is_image, walk
from folders import (
    coco_files,
    cvat,
    datumaro,
    fiftyone,
    labelme,
    labelstudio,
    open_images,
    panoptic,
    parquet,
    supervisely,
    unread,
    via,
    yolo,
)
from folders.annotations import RegionSource
from folders.arguments import Arguments
from folders.coco import coco_source
from folders.layout import Pairs, pair_beside, pair_by_folders
from folders.mask_files import check_first
from folders.masks import SPARE, MaskSource
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
Reading = tuple[str, Callable[[], Source]]
"""Says what files are read as, and reads them."""


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
    stated = yolo.find_yaml(root, listed)
    tables = [root / file for file in listed if file in ("classes.txt", "obj.names")]
    tables = tables if stated is None else [stated, *tables]
    images = [file for file in files if is_image(file)]
    texts = yolo.by_name(files)
    labeled = [texts[text] for image in images if (text := yolo.label_in(image, texts)) is not None]
    table = arguments.names or next(iter(tables), None)
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
    return (
        f"Label Studio json, {_names(found)}",
        lambda: labelstudio.labelstudio_source(root, found, files, arguments.annotator, arguments.region_label),
    )


def _look_fiftyone(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    if _base(arguments) != root or not fiftyone.is_fiftyone(root, listed):
        return None
    return (
        "FiftyOneDataset, samples.json",
        lambda: fiftyone.fiftyone_source(
            root, files, arguments.label_field, arguments.names, arguments.given_splits, arguments.exif
        ),
    )


def _look_via(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    found = _by_split(arguments, _of_kind(arguments, listed, ".json", via.is_via))
    if not found:
        return None
    return f"VIA json, {_names(found)}", lambda: via.via_source(root, found, files, arguments.label_field)


def _look_datumaro(arguments: Arguments, root: Path, listed: list[str], files: list[str]) -> Reading | None:
    found = _by_split(arguments, _of_kind(arguments, listed, ".json", datumaro.is_datumaro))
    if not found:
        return None
    return f"datumaro's json, {_names(found)}", lambda: datumaro.datumaro_source(root, found, files)


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
    if unread.is_labelme_web(arguments.path, listed):
        return None
    stated = yolo.find_yaml(root, listed)
    masks_folder = yolo.entries_of(stated).get("masks_dir") if stated is not None else None
    pairs = pair_by_folders(files, PurePosixPath(str(masks_folder or "")).name.lower())
    pairs = pairs if pairs.masks else pair_beside(files)
    if not pairs.masks:
        return None
    table = arguments.names or _table(root, listed, stated)
    return f"{len(pairs.masks)} images with masks, names from {table.name}", lambda: _mask_source(
        arguments, root, pairs, table
    )


def _mask_source(arguments: Arguments, root: Path, pairs: Pairs, table: Path) -> MaskSource:
    if table.name == "label_colors.txt" and arguments.names is None and arguments.ignore_id != 0:
        check_first(table, pairs.masks)
    splits = yolo.stated_splits(root, table, list(pairs.masks)) if table.suffix.lower() in (".yaml", ".yml") else {}
    listed = {image for images in splits.values() for image in images}
    left_out = {
        f"images that {table.name} does not list": len(pairs.masks) - len(listed) if splits else 0,
        SPARE: pairs.spare,
    }
    return MaskSource(
        images=root,
        masks=root,
        pairs=pairs.masks,
        table=table,
        with_colors=table.name != "config_v2.0.json",
        splits=splits or None,
        left_out={kind: number for kind, number in left_out.items() if number},
    )


def _table(root: Path, listed: list[str], stated: Path | None = None) -> Path:
    """Returns the table of classes, or `stated` without any; raises DataError if there is none, or several that differ."""
    names = {file: PurePosixPath(file).name.lower() for file in listed}
    found = [root / file for wanted in TABLES for file, name in names.items() if name == wanted]
    contents = {table: content for table in found if (content := _content(table)) is not None}
    other = next((table for table in contents if contents[table] != contents[next(iter(contents))]), None)
    if other is not None:
        raise DataError(
            f"{next(iter(contents))} and {other} differ: expected the same classes in all splits and tables; name one with --names"
        )
    if found:
        return next(iter(contents), found[0])
    if stated is not None:
        return stated
    raise DataError(
        f"{root} has images and masks, but no table of class names ({', '.join(TABLES[:6])}, ...): name one with --names, such "
        "as a csv with the columns id and name"
    )


def _content(table: Path) -> dict[int, str] | None:
    """Returns the names in a table, or None if a file of such a name is something else."""
    try:
        return read_names(table)
    except DataError:
        return None


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
    "fiftyone": _look_fiftyone,
    "via": _look_via,
    "datumaro": _look_datumaro,
    "masks": _look_masks,
}
