"""A user's images with polygons or RLE in COCO or LVIS style json."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from common.coco_json import CocoJson, Image
from common.pairs import check_files, fingerprint, order
from common.regions import make_samples
from folders.arguments import NAME, VERSION, Arguments, divide, keys_of, read_turned
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo
from kiloseg.data.writing.build import build, plan_shards
from kiloseg.storage.errors import DataError

BACKGROUND = "background"


def build_annotated(arguments: Arguments) -> DatasetInfo:
    """Builds from annotations; `arguments.annotations` is set.

    Raises:
        DataError: files that are missing or hold something else, or as `build`.
    """
    jsons = find_jsons(arguments)
    stores, recipe = index_annotations(arguments, jsons)
    mend = "--images must hold each image that the annotations list, under its file_name"
    tasks, images = [], {}
    for split, store in stores.items():
        files = read_column(store, "image")
        check_files(arguments.images, files, "images", mend)
        tasks += plan_shards(split, len(files), arguments.shard_size)
        images[split] = fingerprint(arguments.images, files)
    info = DatasetInfo(
        name=arguments.name,
        classes=read_classes(next(iter(stores.values()))),
        background=0 if arguments.unlabelled == BACKGROUND else None,
        licence=arguments.licence,
        command=arguments.command("datasets/folder.py"),
        recipe={
            "builder": NAME,
            "version": VERSION,
            "exif": arguments.exif,
            "images": images,
            **recipe,
        },
    )
    make = functools.partial(
        make_samples,
        root=arguments.images.resolve(),
        stores={split: store.resolve() for split, store in stores.items()},
        empty=0 if arguments.unlabelled == BACKGROUND else IGNORE_ID,
        read_image=functools.partial(read_turned, exif=arguments.exif),
    )
    return build(arguments, info, tasks, make)


def find_jsons(arguments: Arguments) -> dict[str, Path]:
    """The annotation files by split, or one for both splits under "".

    Raises:
        DataError: a folder without any.
    """
    path = arguments.annotations
    assert path is not None
    if not path.is_dir():
        return {"": path}
    jsons = {split: path / f"{split}.json" for split in ("train", "val")}
    found = {split: file for split, file in jsons.items() if file.is_file()}
    if not found:
        raise DataError(
            f"{path} holds neither train.json nor val.json: expected one of them, or the path of a json file"
        )
    for split in jsons.keys() - found.keys():
        print(f"{arguments.name}: {jsons[split]} does not exist, so there will be no split {split}")
    return found


def index_annotations(arguments: Arguments, jsons: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Any]]:
    """Sorts the annotations by image and split, unless that was done before.

    Returns:
        The store of each split, and what they were made from.
    """
    first = next(iter(jsons.values()))
    folder = arguments.index or first.parent / "kiloseg"
    recipe = {
        "unlabelled": arguments.unlabelled,
        "annotations": [source(path) for path in jsons.values()],
        "val_fraction": arguments.val_fraction if "" in jsons else None,
        "seed": arguments.seed if "" in jsons else None,
        "folders": [split for split in ("train", "val") if (arguments.images / split).is_dir()],
    }
    splits = ("train", "val") if "" in jsons else tuple(jsons)
    stores = {split: folder / f"{first.stem}-{split}.parquet" for split in splits}
    if not all(is_current(store, recipe) for store in stores.values()):
        print(f"{arguments.name}: sorting the annotations by image into {folder}, once")
        content = {split: CocoJson(path) for split, path in jsons.items()}
        class_ids, classes = class_table(list(content.values()), arguments.unlabelled == BACKGROUND)
        divided = divide_images(arguments, content)
        for split, store in stores.items():
            rows = annotated_images(content.get(split) or content[""], divided.get(split, []), class_ids)
            write_store(store, recipe, tqdm(rows, unit=" images", desc=f"annotations {split}"), classes)
    return {split: store for split, store in stores.items() if num_images(store)}, recipe


def class_table(jsons: list[CocoJson], background: bool) -> tuple[dict[int, int], list[str]]:
    """Category id to class id, and the names of the classes, in the order of the category ids.

    Raises:
        DataError: files with different categories, or a name or id that comes twice.
    """
    categories = sorted((category.id, category.name) for category in jsons[0].categories)
    for other in jsons[1:]:
        if sorted((category.id, category.name) for category in other.categories) != categories:
            raise DataError(
                f"{jsons[0].path} and {other.path} have different categories: expected the same ids and names"
            )
    classes = [BACKGROUND] * background + [name for _, name in categories]
    ids = [category_id for category_id, _ in categories]
    if len(set(classes)) != len(classes) or len(set(ids)) != len(ids) or len(classes) < 2:
        raise DataError(
            f"{jsons[0].path} has {len(categories)} categories, and with --unlabelled {BACKGROUND if background else 'ignore'} "
            f"{len(set(classes))} different names: expected at least 2 classes, each id and name once"
        )
    return {category_id: class_id for class_id, category_id in enumerate(ids, start=int(background))}, classes


def divide_images(arguments: Arguments, jsons: dict[str, CocoJson]) -> dict[str, list[tuple[str, str, Image]]]:
    """Key, file and image of each split, in a fixed random order.

    Raises:
        DataError: no image at all, or images that would have the same key.
    """
    images = {
        split: [(_file(arguments.images, split, image, content.path), image) for image in content.images.values()]
        for split, content in jsons.items()
    }
    all_images = [item for of_split in images.values() for item in of_split]
    keys = keys_of(file for file, _ in all_images)
    if not keys:
        raise DataError(f"{next(iter(jsons.values())).path} lists no images: expected at least one")
    files = {split: [file for file, _ in of_split] for split, of_split in images.items()}
    if "" in files:
        folders = {Path(file).parts[0] for file in files[""]}
        files = (
            {split: [file for file in files[""] if Path(file).parts[0] == split] for split in ("train", "val")}
            if folders <= {"train", "val"}
            else divide(keys, arguments.val_fraction, arguments.seed)
        )
    image_of = dict(all_images)
    return {
        split: sorted(((keys[file], file, image_of[file]) for file in chosen), key=lambda item: order(item[0]))
        for split, chosen in files.items()
    }


def _file(root: Path, split: str, image: Image, path: Path) -> str:
    """Where an image is, relative to the images' root."""
    file = image.file_name or "/".join(image.coco_url.split("/")[-2:])
    if not file or Path(file).is_absolute() or ".." in Path(file).parts:
        raise DataError(f"{path}: image {image.id} has file_name {file!r}: expected a path inside --images")
    return f"{split}/{file}" if split and (root / split).is_dir() else file


def annotated_images(
    content: CocoJson, images: list[tuple[str, str, Image]], class_ids: dict[int, int]
) -> Iterator[AnnotatedImage]:
    """Each image with its regions in the order of the file.

    Raises:
        DataError: an annotation whose category is not listed.
    """
    for key, file, image in images:
        annotations = list(content.annotations(image.id))
        for annotation in annotations:
            if annotation.category_id not in class_ids:
                raise DataError(
                    f"{content.path}: image {image.id} has category {annotation.category_id}, which is not listed under "
                    f"categories: expected one of {len(class_ids)} ids; mend the file"
                )
        yield AnnotatedImage(
            key=key,
            image=file,
            height=image.height,
            width=image.width,
            class_ids=[class_ids[annotation.category_id] for annotation in annotations],
            segmentations=[bytes(annotation.segmentation) for annotation in annotations],
        )
