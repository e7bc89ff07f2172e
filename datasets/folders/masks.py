"""A user's images with masks beside them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from common.label_table import lookup, read_names, to_class_ids
from common.pairs import Pair, build_pairs, check_files, order, read_ids
from folders.arguments import NAME, VERSION, Arguments, divide, keys_of, read_turned
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo
from kiloseg.storage.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")


def build_masked(arguments: Arguments) -> DatasetInfo:
    """Builds from masks; `arguments.masks` and `names` are set.

    Raises:
        DataError: files that are missing or hold something else, or as `build`.
    """
    assert arguments.masks is not None and arguments.names is not None
    if not arguments.masks.is_dir():
        raise DataError(f"{arguments.masks} is no folder: expected the masks of --masks")
    names = read_names(arguments.names)
    table, classes = class_table(names)
    splits = list_splits(arguments)
    mend = f"--masks must hold a PNG for each image, under the same name: for {arguments.images}/a/b.jpg {arguments.masks}/a/b.png"
    for pairs in splits.values():
        check_files(arguments.masks, [pair.mask for pair in pairs], "masks", mend)
    info = DatasetInfo(
        name=arguments.name,
        classes=classes,
        background=classes.index("background") if "background" in classes else None,
        licence=arguments.licence,
        command=arguments.command("datasets/folder.py"),
        recipe={
            "builder": NAME,
            "version": VERSION,
            "names": sorted(names.items()),
            "ignore_id": arguments.ignore_id,
            "exif": arguments.exif,
        },
    )
    read = functools.partial(read_mask, table=table, ignore_id=arguments.ignore_id, names=arguments.names)
    turned = functools.partial(read_turned, exif=arguments.exif)
    return build_pairs(arguments, info, arguments.images, splits, read, masks=arguments.masks, read_image=turned)


def class_table(names: dict[int, str]) -> tuple[np.ndarray, list[str]]:
    """The look-up table and class names of a user's table: class ids are the ranks of the ids that have a name."""
    raw_ids = sorted(raw_id for raw_id, name in names.items() if name)
    table = lookup(dict.fromkeys(names, IGNORE_ID) | {raw_id: class_id for class_id, raw_id in enumerate(raw_ids)})
    return table, [names[raw_id] for raw_id in raw_ids]


def list_splits(arguments: Arguments) -> dict[str, list[Pair]]:
    """Images with the masks that they should have, by split, in a fixed random order.

    Raises:
        DataError: no image at all.
    """
    root = arguments.images
    folders = {split: root / split for split in ("train", "val") if (root / split).is_dir()}
    if folders:
        splits = {split: _images(root, folder, arguments.masks) for split, folder in folders.items()}
        keys = keys_of(file for files in splits.values() for file in files)
    else:
        keys = keys_of(_images(root, root, arguments.masks))
        splits = divide(keys, arguments.val_fraction, arguments.seed)
    for split in ("train", "val"):
        if not splits.get(split):
            print(f"{arguments.name}: no images for split {split}")
    pairs = {
        split: [Pair(key=keys[file], image=file, mask=str(Path(file).with_suffix(".png"))) for file in files]
        for split, files in splits.items()
        if files
    }
    if not pairs:
        raise DataError(f"{root} holds no image: expected files ending in {', '.join(SUFFIXES)}, at any depth")
    return {split: sorted(pairs[split], key=lambda pair: order(pair.key)) for split in pairs}


def _images(root: Path, folder: Path, masks: Path | None) -> list[str]:
    """Images in a folder, without masks that lie in it too: in a folder of their own, or each beside its JPEG."""
    same = masks is not None and masks.resolve() == root.resolve()
    suffixes = [suffix for suffix in SUFFIXES if suffix != ".png" or not same]
    inside = masks is not None and not same and masks.resolve().is_relative_to(root.resolve())
    return sorted(
        str(path.relative_to(root))
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")  # macOS leaves such companions of files on other file systems
        and not (inside and masks is not None and path.resolve().is_relative_to(masks.resolve()))
    )


def read_mask(path: Path, *, table: np.ndarray, ignore_id: int | None, names: Path) -> np.ndarray:
    """uint16 class ids of shape (H, W); raises DataError."""
    raw_HW = read_ids(path)
    if ignore_id is None and raw_HW.dtype == np.uint8 and table[255] < 0:
        ignore_id = 255
    known = table.copy()
    for ignored in {ignore_id, IGNORE_ID} - {None}:
        known[ignored] = IGNORE_ID
    mend = f"Add it to {names}, with an empty name to ignore it, or name it with --ignore-id"
    return to_class_ids(raw_HW, known, path, mend)
