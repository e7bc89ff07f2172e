"""Builds COCO+LVIS: 1,284 classes, 1,203 objects of LVIS v1 and 81 stuff classes of COCO that LVIS lacks.

    python datasets/coco_lvis.py --root ARCHIVES --out data/coco_lvis

A pixel gets the label of the first annotation of LVIS that covers it, otherwise COCO's stuff label; if there is neither, it is
ignored. There is no background class. Ten stuff classes are LVIS classes of the same name
(kiloseg/data/labels/coco_stuff_to_1284.csv). LVIS val mixes images of train2017 and val2017, so stuff is looked up by image, not
by split.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.annotation_store import AnnotatedImage, is_current, read_column, source, write_store
from common.coco_json import CocoJson, Image
from common.command_line import run
from common.label_table import class_names, read_table
from common.pairs import check_count, check_files, order, with_files
from common.regions import make_samples
from kiloseg.data.description import DatasetInfo
from kiloseg.data.writing.build import build, plan_shards
from kiloseg.data.writing.output import Output
from kiloseg.storage.errors import DataError

NAME = "coco_lvis"
VERSION = 1
"""The version is raised with every change that changes a sample."""

NUM_LVIS = 1203
STUFF_OTHER = 183
"""This is COCO's stuff category for everything that is a thing."""
SPLITS = {"train": ("lvis_v1_train.json", 100170), "val": ("lvis_v1_val.json", 19809)}
STUFF = {"train2017": "stuff_train2017.json", "val2017": "stuff_val2017.json"}
REMEDY = (
    "--root must hold train2017 and val2017 (train2017.zip, val2017.zip) and, in annotations, lvis_v1_{train,val}.json and "
    "stuff_{train,val}2017.json (lvis_v1_*.json.zip, stuff_annotations_trainval2017.zip)"
)
LICENSE = (
    "LVIS v1 and COCO-Stuff annotations: CC BY 4.0; images: Flickr terms of use, as COCO "
    "(https://cocodataset.org/#termsofuse). Cite Gupta et al., CVPR 2019, and Caesar et al., CVPR 2018."
)


@dataclass(frozen=True, kw_only=True)
class Arguments(Output):
    """Builds COCO+LVIS: 1,203 objects of LVIS v1 and 81 stuff classes of COCO."""

    root: Path
    """The folder that holds train2017, val2017 and annotations."""
    official_chaining: bool = False
    """Labels two stuff classes as the official code of the paper does, to compare with its results: cabinet as window-other and
    blanket as desk-stuff, because that code replaces ids one after another."""
    index: Path | None = None
    """The folder for the annotations sorted by image (about as large as their zip files), which are made once and kept. It must be
    on storage that all machines can read if there are several. Default: annotations/kiloseg in `root`."""


def build_coco_lvis(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that exist.

    Raises:
        DataError: Files are missing or hold something else, or as for `build`.
    """
    root = arguments.root
    stores = index_annotations(root, arguments.index or root / "annotations" / "kiloseg", arguments.official_chaining)
    tasks, recipes = [], {}
    for split, (store, recipe) in stores.items():
        images = read_column(store, "image")
        check_count(NAME, split, len(images), SPLITS[split][1])
        check_files(root, images, "images", REMEDY)
        tasks += plan_shards(split, len(images), arguments.shard_size)
        recipes[split] = recipe
    info = DatasetInfo(
        name=NAME,
        classes=class_names(read_table("coco_lvis_1284")),
        background=None,
        license=LICENSE,
        command=arguments.command("datasets/coco_lvis.py"),
        recipe={"builder": NAME, "version": VERSION, "annotations": recipes},
    )
    paths = {split: store.resolve() for split, (store, _) in stores.items()}
    tasks = with_files(tasks, {split: read_column(store, "digest") for split, (store, _) in stores.items()})
    make = functools.partial(make_samples, root=root.resolve(), stores=paths)
    return build(arguments, info, tasks, make, covered=("annotations",))


def stuff_class_ids(official_chaining: bool) -> dict[int, int]:
    """Maps COCO stuff ids (92 to 182) to class ids."""
    class_ids = {int(row["coco_stuff_id"]): int(row["class_id"]) for row in read_table("coco_stuff_to_1284")}
    if not official_chaining:
        return class_ids
    # The official code counts classes from 1 and replaces in place: 98 becomes 181, which later becomes 1283.
    ids = np.array(sorted(class_ids))
    chained = ids.copy()
    for stuff_id in ids:
        chained[chained == stuff_id] = class_ids[stuff_id] + 1
    return dict(zip(ids.tolist(), (chained - 1).tolist(), strict=True))


def index_annotations(root: Path, folder: Path, official_chaining: bool) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Sorts the annotations of every existing split by image, unless that was done before.

    Returns:
        For each split, its store and what it was made from.

    Raises:
        DataError: There is no split at all, or files are missing or hold something else.
    """
    jsons = root / "annotations"
    splits = {}
    for split, (file, _) in SPLITS.items():
        if (jsons / file).is_file():
            splits[split] = jsons / file
        else:
            print(f"{NAME}: {jsons / file} does not exist, so there will be no split {split}")
    if not splits:
        raise DataError(f"{root} holds no files of {NAME}: expected {jsons / SPLITS['train'][0]}. {REMEDY}")
    stuff_paths = [jsons / file for file in STUFF.values() if (jsons / file).is_file()]
    if not stuff_paths:
        raise DataError(
            f"{jsons / STUFF['train2017']} is missing: expected stuff annotations beside those of LVIS. {REMEDY}"
        )
    stuff_sources = [source(path) for path in stuff_paths]
    classes = class_names(read_table("coco_lvis_1284"))
    stores = {}
    stale = []
    for split, path in splits.items():
        recipe = {
            "version": VERSION,
            "official_chaining": official_chaining,
            "lvis": source(path),
            "stuff": stuff_sources,
        }
        store = folder / f"{NAME}-{split}{'-chained' if official_chaining else ''}.parquet"
        stores[split] = (store, recipe)
        if not is_current(store, recipe):
            stale.append(split)
    if stale:
        print(f"{NAME}: sorting the annotations of {' and '.join(stale)} by image into {folder}, once")
        stuff = [CocoJson(path) for path in stuff_paths]
        for split in stale:
            store, recipe = stores[split]
            images = join_annotations(CocoJson(splits[split]), stuff, stuff_class_ids(official_chaining))
            write_store(store, recipe, tqdm(images, unit=" images", desc=splits[split].name), classes)
    return stores


def join_annotations(lvis: CocoJson, stuff: list[CocoJson], stuff_ids: dict[int, int]) -> Iterator[AnnotatedImage]:
    """Yields each image with its objects first, which lie on top, then its stuff.

    Raises:
        DataError: No stuff file lists an image, or a category is not of LVIS v1 or COCO-Stuff.
    """
    if {category.id for category in lvis.categories} != set(range(1, NUM_LVIS + 1)):
        raise DataError(
            f"{lvis.path} has {len(lvis.categories):,} categories: expected LVIS v1 with ids 1 to {NUM_LVIS}. {REMEDY}"
        )
    lvis_ids = {category_id: category_id - 1 for category_id in range(1, NUM_LVIS + 1)}
    stuff_ids = stuff_ids | {STUFF_OTHER: -1}
    keyed = sorted(
        ((*_locate(image, lvis.path), image) for image in lvis.images.values()), key=lambda item: order(item[0])
    )
    for key, path, image in keyed:
        owner = next((file for file in stuff if image.id in file.images), None)
        if owner is None:
            raise DataError(
                f"{lvis.path} has image {image.id}, which {' and '.join(str(file.path) for file in stuff)} do not list: "
                f"expected the stuff annotations of every image. {REMEDY}"
            )
        class_ids, segmentations = [], []
        for file, ids in ((lvis, lvis_ids), (owner, stuff_ids)):
            for annotation in file.annotations(image.id):
                class_id = ids.get(annotation.category_id)
                if class_id is None:
                    raise DataError(
                        f"{file.path}: image {image.id} has category {annotation.category_id}: expected {min(ids)} to "
                        f"{max(ids)}. {REMEDY}"
                    )
                if class_id >= 0:
                    class_ids.append(class_id)
                    segmentations.append(bytes(annotation.segmentation))
        yield AnnotatedImage(
            key=key,
            image=path,
            height=image.height,
            width=image.width,
            class_ids=class_ids,
            segmentations=segmentations,
        )


def _locate(image: Image, json_path: Path) -> tuple[str, str]:
    """Returns the key and file of an image. In LVIS, only `coco_url` says which of COCO's folders it is in."""
    parts = image.coco_url.split("/")[-2:]
    if len(parts) != 2 or parts[0] not in STUFF or not parts[1]:
        raise DataError(
            f"{json_path}: image {image.id} has coco_url {image.coco_url!r}: expected one that ends in "
            f"{' or '.join(STUFF)} and a file name. {REMEDY}"
        )
    return parts[1].partition(".")[0], "/".join(parts)


if __name__ == "__main__":
    run(build_coco_lvis, Arguments)
