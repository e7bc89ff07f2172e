"""Reads Parquet files of the Hugging Face Hub: a row per sample, with an image and its mask as bytes (or as paths of local files).

    data/train-00000-of-00002.parquet     image: {bytes, path}, label: {bytes, path}
    id2label.json                         {"0": "unlabeled", "1": "road"}

The metadata of the schema says which columns are images. Masks hold ids, so their names come from a table beside the files or from
--names. Rows stay together as the files group them, since reading one row reads its group; the groups are in random order.
Neither datumaro nor supervision reads these files, and the library datasets converts them to its own format first.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from common.pairs import fingerprint, order, safe_key, states, with_files
from common.tiles import cut_samples
from folders.arguments import NAME, VERSION, Arguments
from folders.masks import mask_reader
from folders.parquet_rows import Row, key_of, make_samples
from folders.splits import divide, split_in_name, usual_split, without_test
from kiloseg.data.description import DatasetInfo
from kiloseg.data.writing.build import ShardTask, build, plan_shards
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError

IMAGES = ("image", "images", "img", "pixel_values", "picture", "photo", "jpg")
MASKS = (
    *(
        "label",
        "labels",
        "annotation",
        "annotations",
        "mask",
        "masks",
        "segmentation",
        "segmentation_mask",
        "label_map",
    ),
    *("semantic_segmentation", "seg", "semantic_seg", "semantic", "gt", "ground_truth", "target", "labels_mask"),
)
"""The usual names of the two columns."""


@dataclass(frozen=True, kw_only=True)
class ParquetSource:
    """Holds the rows that were found."""

    root: Path
    splits: dict[str, list[Row]]
    """The rows of each split in the order of the samples; "" if nothing tells the split."""
    columns: tuple[str, str]
    """The columns of the image and of the mask."""
    table: Path
    """The file of class names."""


def is_hub_parquet(path: Path, columns: tuple[str, ...]) -> bool:
    """Whether a Parquet file has a column of images and one of masks, by its schema."""
    try:
        schema = pyarrow.parquet.read_schema(path)
    except (OSError, pyarrow.ArrowInvalid):
        return False
    return len(_image_columns(schema)) >= 2 or bool(columns)


def parquet_source(
    root: Path, files: list[str], table: Path, given: Mapping[str, str], columns: tuple[str, ...]
) -> ParquetSource:
    """Returns the rows of files below `root`.

    Args:
        root: the folder.
        files: its Parquet files, relative to it.
        table: the file of class names.
        given: what the user said about splits.
        columns: the columns of image and mask that the user named, or nothing.

    Raises:
        DataError: A file is damaged, its columns differ or cannot be told apart, or nothing tells the split of some files.
    """
    alike = {safe_key(file): file for file in files}
    if len(alike) < len(files):
        twice = next(file for file in files if alike[safe_key(file)] != file)
        raise DataError(f"{root / twice} and {root / alike[safe_key(twice)]} give equal keys: rename one of them")
    found: dict[str, list[Row]] = {}
    image_and_mask: tuple[str, str] | None = None
    for file in files:
        try:
            metadata = pyarrow.parquet.read_metadata(root / file)
            names = _columns(metadata.schema.to_arrow_schema(), root / file, columns)
        except (OSError, pyarrow.ArrowInvalid) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{root / file} is not a complete Parquet file ({error}): restore it "
                "(one of about 130 bytes is a pointer of Git LFS, "
                "not the file)"
            ) from error
        if image_and_mask not in (None, names):
            raise DataError(f"{root / file} has its images and masks in {names}, other files in {image_and_mask}")
        image_and_mask = names
        split = _split(file, given)
        first = 0
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            found.setdefault(split, []).extend(Row(file, group, row, first + row) for row in range(rows))
            first += rows
    found.pop("none", None)
    assert image_and_mask is not None
    if "" in found and len(found) > 1:
        raise DataError(
            f"{root / found[''][0].file}: nothing tells which split it is, though other files are of "
            f"{', '.join(sorted(found.keys() - {''}))}: say it with --splits {Path(found[''][0].file).stem}=train or =none"
        )
    return ParquetSource(root=root, splits=in_groups(found), columns=image_and_mask, table=table)


def in_groups(splits: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Returns the rows of each split with groups in random order, and rows of a group together."""
    return {
        split: sorted(rows, key=lambda row: (order(f"{row.file}/{row.group}"), row.row))
        for split, rows in splits.items()
    }


def _split(file: str, given: Mapping[str, str]) -> str:
    path = Path(file)
    stem = path.stem.partition("-")[0] if "-of-" in path.stem else path.stem
    for name in (path.stem, *reversed(path.parts[:-1])):
        if name in given:
            return given[name]
    found = split_in_name(stem, given)
    return found or next((s for part in reversed(path.parts[:-1]) if (s := usual_split(part, given))), "")


def _image_columns(schema: pyarrow.Schema) -> list[str]:
    """Returns the columns that hold images, by the metadata of datasets or, without any, by their type."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    features: dict[str, Any] = json.loads(metadata).get("info", {}).get("features", {}) if metadata else {}
    found = [
        name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == "Image"
    ]
    return [name for name in found if name in schema.names] or [field.name for field in schema if _holds_bytes(field)]


def _holds_bytes(field: pyarrow.Field) -> bool:
    kind = field.type
    return pyarrow.types.is_struct(kind) and {kind.field(n).name for n in range(kind.num_fields)} == {"bytes", "path"}


def _columns(schema: pyarrow.Schema, path: Path, given: tuple[str, ...]) -> tuple[str, str]:
    """Returns the columns of image and mask; raises DataError if they cannot be told apart."""
    if given:
        missing = next((name for name in given if name not in schema.names), None)
        if missing is not None or len(given) != 2:
            raise DataError(
                f"{path} has the columns {', '.join(schema.names)}: expected --columns IMAGE MASK among them"
            )
        return given[0], given[1]
    holders = _image_columns(schema)
    images = [name for name in holders if name.lower() in IMAGES]
    masks = [name for name in holders if name.lower() in MASKS]
    if len(images) != 1 or len(masks) != 1:
        raise DataError(
            f"{path} has images in the columns {', '.join(holders)}, which do not tell which is the image and which its mask: "
            "say it with --columns IMAGE MASK"
        )
    return images[0], masks[0]


def build_rows(arguments: Arguments, source: ParquetSource) -> DatasetInfo:
    """Builds a data set from rows that were found; raises DataError as `build`."""
    reader = mask_reader(arguments, source.table)
    splits = source.splits
    if "" in splits:
        keys = {f"{row.file}/{row.number}": key_of(row) for row in splits[""]}
        by_name = {f"{row.file}/{row.number}": row for row in splits[""]}
        divided = divide(keys, arguments.val_fraction, arguments.seed)
        splits = in_groups({split: [by_name[name] for name in names] for split, names in divided.items()})
    splits = without_test(splits, keep=arguments.test, name=arguments.name)
    for split in ("train", "val"):
        if split not in splits:
            print(f"{arguments.name}: no images for split {split}")
    files = sorted({row.file for rows in splits.values() for row in rows})
    info = DatasetInfo(
        name=arguments.name,
        classes=reader.classes,
        background=reader.classes.index("background") if "background" in reader.classes else None,
        license=arguments.license,
        command=arguments.command("datasets/folder.py"),
        recipe={
            "builder": NAME,
            "version": VERSION,
            **reader.recipe(),
            **({} if arguments.tile is None else {"tile": arguments.tile}),
            "columns": list(source.columns),
            "files": fingerprint(source.root, files),
            "splits": {
                split: hashlib.sha256("".join(map(key_of, rows)).encode()).hexdigest() for split, rows in splits.items()
            },
        },
    )
    make: Callable[[ShardTask], Iterator[Sample]] = functools.partial(
        make_samples, root=source.root.resolve(), rows=splits, columns=source.columns, reader=reader
    )
    if arguments.tile is not None:
        make = functools.partial(cut_samples, make_samples=make, tile=arguments.tile)
    tasks = [task for split, rows in splits.items() for task in plan_shards(split, len(rows), arguments.shard_size)]
    state = dict(zip(files, states(source.root, files), strict=True))
    rows_of = {split: [f"{key_of(row)}\0{state[row.file]}" for row in rows] for split, rows in splits.items()}
    return build(arguments, info, with_files(tasks, rows_of), make, covered=("files", "splits"))
