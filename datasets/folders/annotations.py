"""Builds from a user's images with regions: COCO or LVIS style json, or other tools' files about one image at a time."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from common.annotation_store import (
    AnnotatedImage,
    is_current,
    num_images,
    read_classes,
    read_column,
    source,
    write_store,
)
from common.images import image_size, read_stored
from common.pairs import check_files, digest_of, order, states, with_files
from common.regions import Overlap, make_samples
from common.tiles import cut_samples, num_tiles
from folders.arguments import NAME, VERSION, Arguments
from folders.shapes import check_shapes
from folders.splits import LEFT_OUT, divide, divide_by_folders, keys_of, without_test
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo
from kiloseg.data.writing.build import build, plan_shards
from kiloseg.storage.errors import DataError

BACKGROUND = "background"


class ImageRecord(Protocol):
    """Describes an image with its regions, as a tool's file has them."""

    @property
    def image(self) -> str:
        """Returns the file, relative to the images' root."""

    @property
    def split(self) -> str:
        """Returns the split that the file itself states, or ""."""

    @property
    def height(self) -> int:
        """Returns the height in pixels, or 0 if the file does not say; the image's own is used then."""

    @property
    def width(self) -> int:
        """Returns the width in pixels, with 0 as for the height."""

    @property
    def category_ids(self) -> list[Any]:
        """Returns for each region what the tool calls its class, a key of `RegionSource.classes`."""

    @property
    def segmentations(self) -> list[bytes]:
        """Returns polygons or RLE as json text, one per region; `[]` if a region has no shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """Is an `ImageRecord` that holds its regions."""

    image: str
    split: str = ""
    height: int = 0
    width: int = 0
    category_ids: list[Any] = field(default_factory=list)
    segmentations: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class RegionSource:
    """Holds annotations that were found."""

    root: Path
    """The root of the images."""
    files: list[Path]
    """The files that the annotations are read from: when they change, they are read again."""
    records: Callable[[], Iterable[ImageRecord]]
    classes: Callable[[], Mapping[Any, str]] | None = None
    """The name of each category, in the order of the class ids; without it, the names in the records, sorted."""
    overlap: Overlap = "smallest"
    left_out: Mapping[str, int] = field(default_factory=dict)
    images: Sequence[str] = ()
    """All images below the root, if those that the annotations do not list are to be counted."""
    read_region: Callable[[bytes, int, int], bytes] | None = None
    """Returns polygons or RLE of what a record holds as a segmentation, if that is something else; see `make_samples`."""
    stem: str = "annotations"
    """The stem of the files that keep the annotations sorted by image."""
    ignored: str | None = None
    """A name in the records whose regions are ignored."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What else decides which regions are read."""


def build_regions(arguments: Arguments, found: RegionSource) -> DatasetInfo:
    """Builds a data set from annotations that were found.

    Raises:
        DataError: Files are missing or hold something else, or as for `build`.
    """
    stores, recipe = index_annotations(arguments, found)
    advice = "--images must hold each image that the annotations list, under its file_name"
    tasks, images = [], {}
    for split, store in stores.items():
        files = read_column(store, "image")
        check_files(found.root, files, "images", advice)
        weights = None
        if arguments.tile is not None:
            sizes = zip(read_column(store, "height"), read_column(store, "width"), strict=True)
            weights = [num_tiles(height, width, arguments.tile) for height, width in sizes]
        tasks += plan_shards(split, len(files), arguments.shard_size, weights)
        images[split] = states(found.root, files)
    overlap = arguments.overlap or found.overlap
    info = DatasetInfo(
        name=arguments.name,
        classes=read_classes(next(iter(stores.values()))),
        background=0 if arguments.unlabeled == BACKGROUND else None,
        license=arguments.license,
        command=arguments.command("datasets/folder.py"),
        recipe={
            "builder": NAME,
            "version": VERSION,
            "exif": arguments.exif,
            "overlap": overlap,
            **({} if arguments.tile is None else {"tile": arguments.tile}),
            "images": {split: digest_of(lines) for split, lines in images.items()},
            **recipe,
        },
    )
    make = functools.partial(
        make_samples,
        root=found.root.resolve(),
        stores={split: store.resolve() for split, store in stores.items()},
        empty=0 if arguments.unlabeled == BACKGROUND else IGNORE_ID,
        overlap=overlap,
        read_image=functools.partial(read_stored, exif=arguments.exif),
        read_region=found.read_region,
    )
    if arguments.tile is not None:
        make = functools.partial(cut_samples, make_samples=make, tile=arguments.tile)
    listed = {image for store in stores.values() for image in read_column(store, "image")}
    unlisted = sum(image not in listed for image in found.images)
    left_out = {
        **found.left_out,
        **({"images without annotations or of a split that is not built": unlisted} if unlisted else {}),
    }
    found_states, covered = [images], ["images"]
    if found.read_region is None:  # otherwise the regions are in further files
        found_states.append({split: read_column(store, "digest") for split, store in stores.items()})
        covered.append("annotations")
    return build(arguments, info, with_files(tasks, *found_states), make, left_out=left_out, covered=covered)


def index_annotations(arguments: Arguments, found: RegionSource) -> tuple[dict[str, Path], dict[str, Any]]:
    """Sorts the annotations by image and split, unless that was done before.

    Returns:
        The store of each split, and what they were made from.
    """
    folder = arguments.index or found.files[0].parent / "kiloseg"
    recipe = {
        "unlabelled": arguments.unlabeled,
        "annotations": _sources(found.files),
        "val_fraction": arguments.val_fraction,
        "seed": arguments.seed,
        "splits": list(arguments.splits),
        "exif": arguments.exif,
        "version": VERSION,
        **({"settings": dict(found.settings)} if found.settings else {}),
    }
    splits = ("train", "val", "test") if arguments.test else ("train", "val")
    stores = {split: folder / f"{found.stem}-{split}.parquet" for split in splits}
    if not all(is_current(store, recipe) for store in stores.values()):
        print(f"{arguments.name}: sorting the annotations by image into {folder}, once")
        records = list(found.records())
        class_ids, classes = class_table(found, records, arguments.unlabeled == BACKGROUND)
        divided = divide_records(arguments, found, records)
        _check_shapes(found, records)
        for split, store in stores.items():
            rows = annotated_images(divided.get(split, []), class_ids, found, arguments)
            write_store(store, recipe, tqdm(rows, unit=" images", desc=f"annotations {split}"), classes)
    whole = {split: store for split, store in stores.items() if num_images(store)}
    for split in ("train", "val"):
        if split not in whole:
            print(f"{arguments.name}: no images for split {split}")
    if not whole:
        raise DataError(f"{found.files[0]} lists no images of a split that is built: expected at least one")
    return whole, recipe


def _sources(files: list[Path]) -> Any:
    """Returns what `source` says of each file, as one digest if there are many."""
    sources = [source(path) for path in files]
    return sources if len(sources) <= 16 else hashlib.sha256(repr(sources).encode()).hexdigest()


def class_table(found: RegionSource, records: list[ImageRecord], background: bool) -> tuple[dict[Any, int], list[str]]:
    """Maps categories to class ids, and lists the names of the classes.

    Raises:
        DataError: A name or id occurs twice, or there are fewer than two classes.
    """
    ignored = None
    if found.classes is not None:
        names = dict(found.classes())
    else:
        _check_shapes(found, records)  # first, since without annotations there are no names either
        names = {name: name for name in sorted({name for record in records for name in record.category_ids})}
        ignored = names.pop(found.ignored, None)
    own = next((key for key, name in names.items() if name.strip() == BACKGROUND), None) if background else None
    if own is not None:  # the file's own background is the background, not a second class of that name
        names = {own: names.pop(own), **names}
        background = False
    classes = [BACKGROUND] * background + [name.strip() for name in names.values()]
    twice = next((name for number, name in enumerate(classes) if name in classes[:number]), None)
    if twice is not None or len(classes) < 2 or "" in classes:
        fault = f"the name {twice!r} twice" if twice is not None else f"{len(names)} categories"
        raise DataError(
            f"{found.files[0]} has {fault}, and with --unlabeled {BACKGROUND if background else 'ignore'} "
            f"{len(set(classes))} different names: expected at least 2 classes, each id and name once"
        )
    ids = {key: class_id for class_id, key in enumerate(names, start=int(background))}
    return ids if ignored is None else {**ids, ignored: IGNORE_ID}, classes


def _check_shapes(found: RegionSource, records: list[ImageRecord]) -> None:
    check_shapes((record.segmentations for record in records), found.files[0], drawn=found.read_region is None)


def divide_records(
    arguments: Arguments, found: RegionSource, records: list[ImageRecord]
) -> dict[str, list[tuple[str, ImageRecord]]]:
    """Returns key and record of each image of each split, in a fixed random order.

    Raises:
        DataError: There is no image at all, or images would have the same key.
    """
    keys = keys_of(record.image for record in records)
    if not keys:
        raise DataError(f"{found.files[0]} lists no images: expected at least one")
    by_image = {record.image: record for record in records}
    files: dict[str, list[str]] = {}
    for record in records:
        files.setdefault(record.split, []).append(record.image)
    if "" in files and len(files) > 1:
        raise DataError(
            f"{found.files[0]}: nothing tells which split {files[''][0]} and {len(files['']) - 1} other images are, though others "
            f"are of {', '.join(sorted(files.keys() - {''}))}: say it with --splits NAME=train, =val, =test, or ={LEFT_OUT}, NAME "
            "being the folder, file or subset that they are in"
        )
    files.pop(LEFT_OUT, None)
    if "" in files:
        divided = divide_by_folders(files[""], arguments.given_splits, str(found.root))
        files = divided or divide(keys, arguments.val_fraction, arguments.seed)
    files = without_test(files, keep=arguments.test, name=arguments.name)
    return {
        split: sorted(((keys[file], by_image[file]) for file in chosen), key=lambda item: order(item[0]))
        for split, chosen in files.items()
    }


def annotated_images(
    records: Iterable[tuple[str, ImageRecord]], class_ids: Mapping[Any, int], found: RegionSource, arguments: Arguments
) -> Iterator[AnnotatedImage]:
    """Yields each image with its regions in the order of the file.

    Raises:
        DataError: An annotation's category is not listed.
    """
    for key, record in records:
        unknown = next((category for category in record.category_ids if category not in class_ids), None)
        if unknown is not None:
            raise DataError(
                f"{found.files[0]}: image {record.image} has category {unknown}, which is not listed under categories: expected "
                f"one of {len(class_ids)}; correct the file"
            )
        height, width = record.height, record.width
        if not height or not width:
            height, width = image_size(found.root / record.image, arguments.exif)
        yield AnnotatedImage(
            key=key,
            image=record.image,
            height=height,
            width=width,
            class_ids=[class_ids[category] for category in record.category_ids],
            segmentations=record.segmentations,
        )
