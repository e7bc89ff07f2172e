"""Builds from a user's images with masks beside them."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.class_names import NameTable, read_name_table
from common.images import count_unread, is_image, read_stored, walk
from common.pairs import Pair, fingerprint, order, read_list
from folders.arguments import NAME, VERSION, Arguments
from folders.layout import pair_folders
from folders.mask_files import MASK_SUFFIXES, MaskReader
from folders.splits import divide, divide_by_folders, keys_of, split_in_name, without_test
from kiloseg.data.description import DatasetInfo
from kiloseg.data.writing.build import ShardTask, build, plan_shards
from kiloseg.data.writing.current import working_on
from kiloseg.data.writing.report import WHITE
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError

LISTS = ("ImageSets/Segmentation", "ImageSets/Main", "ImageSets")
"""These folders hold lists of images by split, as in PASCAL VOC and CVAT."""


@dataclass(frozen=True, kw_only=True)
class MaskSource:
    """Holds images and masks that were found."""

    images: Path
    masks: Path
    pairs: dict[str, str]
    """Maps images to masks, each a path relative to its root."""
    table: Path
    """The file of class names."""
    with_colors: bool = True
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)


def build_masked(arguments: Arguments) -> DatasetInfo:
    """Builds a data set from the masks that `arguments` name.

    Raises:
        DataError: Files are missing or hold something else, or as for `build`.
    """
    assert arguments.images is not None and arguments.masks is not None and arguments.names is not None
    for path, flag, what in ((arguments.images, "images", "images"), (arguments.masks, "masks", "masks")):
        if not path.is_dir():
            raise DataError(f"{path} is not a folder: expected the {what} of --{flag}")
    read_name_table(arguments.names)
    files, left_out = _images(arguments.images, arguments.masks)
    keys_of(files)
    masks = [file for file in walk(arguments.masks) if Path(file).suffix.lower() in MASK_SUFFIXES]
    pairs = pair_folders(files, masks, arguments.masks)
    source = MaskSource(
        images=arguments.images, masks=arguments.masks, pairs=pairs, table=arguments.names, left_out=left_out
    )
    return build_source(arguments, source)


def build_source(arguments: Arguments, source: MaskSource) -> DatasetInfo:
    """Builds a data set from images and masks that were found; raises DataError as `build_masked`."""
    if not source.pairs:
        raise DataError(
            f"{source.images} holds no image: expected files ending in .jpg, .jpeg, .png, .tif, ..., at any depth"
        )
    table: NameTable = read_name_table(source.table, with_colors=source.with_colors)
    reader = MaskReader(
        names=table.names,
        colors=table.colors,
        table=source.table,
        ignore_id=arguments.ignore_id,
        reduce_zero=arguments.reduce_zero_label,
        exif=arguments.exif,
    )
    keys = keys_of(source.pairs)
    splits = _splits(arguments, source, keys)
    for split in ("train", "val"):
        if split not in splits:
            print(f"{arguments.name}: no images for split {split}")
    pairs = {
        split: sorted(
            (Pair(key=keys[file], image=file, mask=source.pairs[file]) for file in files),
            key=lambda pair: order(pair.key),
        )
        for split, files in splits.items()
    }
    recipe = {
        "builder": NAME,
        "version": VERSION,
        "names": sorted(table.names.items()),
        "colors": sorted([*color, raw_id] for color, raw_id in table.colors.items()),
        "ignore_id": arguments.ignore_id,
        "reduce_zero_label": arguments.reduce_zero_label,
        "exif": arguments.exif,
        "files": {
            split: [
                fingerprint(source.images, [pair.image for pair in found]),
                fingerprint(source.masks, [pair.mask for pair in found]),
            ]
            for split, found in pairs.items()
        },
    }
    classes = reader.classes
    info = DatasetInfo(
        name=arguments.name,
        classes=classes,
        background=classes.index("background") if "background" in classes else None,
        license=arguments.license,
        command=arguments.command("datasets/folder.py"),
        recipe=recipe,
    )
    tasks = [task for split, found in pairs.items() for task in plan_shards(split, len(found), arguments.shard_size)]
    make = functools.partial(
        make_samples,
        images=source.images.resolve(),  # absolute, since workers on a cluster start elsewhere
        masks=source.masks.resolve(),
        pairs=pairs,
        reader=reader,
    )
    return build(arguments, info, tasks, make, left_out=source.left_out)


def make_samples(
    task: ShardTask, *, images: Path, masks: Path, pairs: Mapping[str, list[Pair]], reader: MaskReader
) -> Iterator[Sample]:
    """Yields the samples of a shard."""
    for pair in pairs[task.split][task.start : task.stop]:
        working_on(pair.image)
        data = read_stored(images / pair.image, exif=reader.exif)
        mask_HW, white = reader(masks / pair.mask)
        yield Sample(
            key=pair.key,
            image=data,
            mask=mask_HW,
            meta={"image": pair.image, "mask": pair.mask},
            counts={WHITE: int(white)},
        )


def _images(root: Path, masks: Path) -> tuple[list[str], Counter[str]]:
    """Returns the images below a folder, without masks that lie in it too: in their own folder, or each beside its JPEG."""
    same = masks.resolve() == root.resolve()
    inside = not same and masks.resolve().is_relative_to(root.resolve())
    skipped = f"{masks.resolve().relative_to(root.resolve())}/" if inside else None
    files = [file for file in walk(root) if skipped is None or not file.startswith(skipped)]
    images = [file for file in files if is_image(file) and not (same and Path(file).suffix.lower() in MASK_SUFFIXES)]
    return images, count_unread(iter(files))


def _splits(arguments: Arguments, source: MaskSource, keys: Mapping[str, str]) -> dict[str, list[str]]:
    found = _listed(source, arguments.given_splits)
    if found is None:
        found = divide_by_folders(source.pairs, arguments.given_splits, str(source.images))
    if found is None:
        found = divide(keys, arguments.val_fraction, arguments.seed)
    return without_test(found, keep=arguments.test, name=arguments.name)


def _listed(source: MaskSource, given: Mapping[str, str]) -> dict[str, list[str]] | None:
    """Returns the images by the lists of a folder ImageSets, or None if there are none that name a split."""
    for folder in (source.images / name for name in LISTS):
        lists = {split: path for path in sorted(folder.glob("*.txt")) if (split := split_in_name(path.stem, given))}
        if not lists:
            continue
        by_name: dict[str, str] = {}
        for file in source.pairs:
            stem = str(Path(file).with_suffix(""))
            by_name[stem] = by_name[Path(stem).name] = file
            by_name[stem.partition("/")[2]] = file
        found = {}
        for split, path in lists.items():
            names = read_list(path)
            unknown = [name for name in names if name not in by_name]
            if unknown:
                raise DataError(
                    f"{path} lists {unknown[0]!r}, and {len(unknown) - 1} more, for which no image with a mask exists: expected "
                    "the names of images without suffix; restore the files or correct the list"
                )
            found[split] = [by_name[name] for name in names]
        return found
    return None
