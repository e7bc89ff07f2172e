"""Builds from a user's images with masks beside them."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.class_names import VOC_VOID, read_name_table, voc_color
from common.images import Exif, count_unread, image_size, is_image, read_stored, walk
from common.pairs import Pair, fingerprint, order, pair_states, with_files
from common.tiles import cut_samples, num_tiles
from folders.arguments import NAME, VERSION, Arguments
from folders.layout import pair_folders
from folders.lists import read_lists
from folders.mask_files import MASK_SUFFIXES, MaskReader
from folders.splits import divide, divide_by_folders, keys_of, without_test
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo
from kiloseg.data.writing.build import ShardTask, build, plan_shards
from kiloseg.data.writing.current import working_on
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError

SPARE = "files among the masks that belong to no image"


class Reader(Protocol):
    """Reads a mask's file; it can be sent to other processes."""

    @property
    def classes(self) -> list[str]:
        """Returns one name per class id."""

    def __call__(self, path: Path) -> tuple[np.ndarray, dict[str, int]]:
        """Returns uint16 class ids of shape (H, W), and what counts for the report."""

    def recipe(self) -> dict[str, Any]:
        """Returns everything that affects the class ids, as JSON-able values."""


@dataclass(frozen=True, kw_only=True)
class MaskSource:
    """Holds images and masks that were found."""

    images: Path
    masks: Path
    pairs: dict[str, str]
    """Maps images to masks, each a path relative to its root."""
    table: Path | None = None
    """The file of class names, if masks hold ids or colors."""
    with_colors: bool = True
    reader: Reader | None = None
    """Reads masks that hold something else, such as the ids of segments; `table` is not used then."""
    splits: Mapping[str, list[str]] | None = None
    """The images of each split, if the files that were read tell them."""
    files: Sequence[Path] = ()
    """Further files that the masks are made from."""
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
    pairs, spare = pair_folders(files, masks, arguments.masks)
    source = MaskSource(
        images=arguments.images,
        masks=arguments.masks,
        pairs=pairs,
        table=arguments.names,
        left_out=left_out | ({SPARE: spare} if spare else {}),
    )
    return build_source(arguments, source)


def build_source(arguments: Arguments, source: MaskSource) -> DatasetInfo:
    """Builds a data set from images and masks that were found; raises DataError as `build_masked`."""
    if not source.pairs:
        raise DataError(
            f"{source.images} holds no image: expected files ending in .jpg, .jpeg, .png, .tif, ..., at any depth"
        )
    if source.reader is not None:
        reader = source.reader
    else:
        assert source.table is not None
        reader = mask_reader(arguments, source.table, with_colors=source.with_colors)
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
    found_states, files = pair_states(source.images, source.masks, pairs)
    recipe = {
        "builder": NAME,
        "version": VERSION,
        **reader.recipe(),
        "exif": arguments.exif,
        **({} if arguments.tile is None else {"tile": arguments.tile}),
        **(
            {"sources": fingerprint(source.masks, [str(file.resolve()) for file in source.files])}
            if source.files
            else {}
        ),
        "files": files,
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
    tasks = []
    for split, found in pairs.items():
        weights = None
        if arguments.tile is not None:
            sizes = (image_size(source.images / pair.image, arguments.exif) for pair in found)
            weights = [num_tiles(height, width, arguments.tile) for height, width in sizes]
        tasks += plan_shards(split, len(found), arguments.shard_size, weights)
    make: Callable[[ShardTask], Iterator[Sample]] = functools.partial(
        make_samples,
        images=source.images.resolve(),  # absolute, since workers on a cluster start elsewhere
        masks=source.masks.resolve(),
        pairs=pairs,
        reader=reader,
        exif=arguments.exif,
    )
    if arguments.tile is not None:
        make = functools.partial(cut_samples, make_samples=make, tile=arguments.tile)
    tasks = with_files(tasks, *found_states)
    return build(arguments, info, tasks, make, left_out=source.left_out, covered=("files",))


def mask_reader(arguments: Arguments, table: Path, *, with_colors: bool = True) -> MaskReader:
    """Returns the reader of masks that hold the ids or colors of a table; raises DataError."""
    content = read_name_table(table, with_colors=with_colors)
    colors = content.colors
    if arguments.colormap == "voc" and not colors:
        colors = {voc_color(raw_id): raw_id for raw_id in content.names if raw_id < 256} | {VOC_VOID: IGNORE_ID}
    return MaskReader(
        names=content.names,
        colors=colors,
        table=table,
        replaced=content.replaced,
        ignore_id=arguments.ignore_id,
        reduce_zero=arguments.reduce_zero_label,
        exif=arguments.exif,
    )


def make_samples(
    task: ShardTask, *, images: Path, masks: Path, pairs: Mapping[str, list[Pair]], reader: Reader, exif: Exif
) -> Iterator[Sample]:
    """Yields the samples of a shard."""
    for pair in pairs[task.split][task.start : task.stop]:
        working_on(pair.image)
        data = read_stored(images / pair.image, exif=exif)
        mask_HW, counts = reader(masks / pair.mask)
        yield Sample(
            key=pair.key,
            image=data,
            mask=mask_HW,
            meta={"image": pair.image, "mask": pair.mask},
            counts=counts,
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
    """Returns the images of each split, as the files, lists or folders tell, or divided."""
    found = None if source.splits is None else dict(source.splits)
    if found is None:
        texts = [file for file in walk(source.images) if file.endswith(".txt")]
        found = read_lists(source.images, texts, source.pairs, arguments.given_splits)
        if found is not None:
            found = _with_unlisted(arguments, found, keys)
    if found is None:
        found = divide_by_folders(source.pairs, arguments.given_splits, str(source.images))
    if found is None:
        found = divide(keys, arguments.val_fraction, arguments.seed)
    return without_test(found, keep=arguments.test, name=arguments.name)


def _with_unlisted(arguments: Arguments, found: dict[str, list[str]], keys: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the splits of lists; if none is of train, the images in no list are train, or are divided if none is of val."""
    listed = {image for images in found.values() for image in images}
    others = {image: key for image, key in keys.items() if image not in listed}
    if "train" in found:
        if others:
            print(f"{arguments.name}: {len(others)} images with a mask are in no list and are left out")
        return found
    if "val" in found:
        return {"train": list(others), **found}
    return {**divide(others, arguments.val_fraction, arguments.seed), **found}
