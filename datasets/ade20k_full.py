"""Builds the full ADE20K (ADE20K_2021_17_01): over 3,000 classes as they were named, or the 847 of the benchmark.

    python datasets/ade20k_full.py --root ARCHIVES --out data/ade20k_847
    python datasets/ade20k_full.py --root ARCHIVES --out data/ade20k_full --classes all

The id of a pixel of X_seg.png is red // 10 * 256 + green. Its name is that of the object with this `name_ndx` in X.json, so
nothing is unpickled. The 847 classes are those of the benchmark of MaskFormer, found by their full names, since nine names share a
first synonym with another. Unlabeled pixels (0) and, with 847 classes, all others are ignored.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from PIL import Image

from common.ade20k import FOLDERS, LICENSE, places
from common.archive import Archive, ArchiveOutput, build_archive
from common.command_line import run
from common.label_table import class_names, read_table
from common.pairs import Pair
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo
from kiloseg.storage.errors import DataError

NAME = "ade20k_full"
VERSION = 1
"""The version is raised with every change that changes a sample."""

FOLDER = "ADE20K_2021_17_01/images/ADE"


@dataclass(frozen=True, kw_only=True)
class Arguments(ArchiveOutput):
    """Builds the full ADE20K: 847 classes of the benchmark, or all that were named. --root holds ADE20K_2021_17_01."""

    classes: Literal["847", "all"] = "847"
    """847 builds the classes of the benchmark. all builds every name that an object of an image has, in the order of the raw
    ids."""


class _Object(msgspec.Struct, gc=False):
    name: str
    name_ndx: int


class _Annotation(msgspec.Struct, gc=False):
    object: list[_Object]


class _Content(msgspec.Struct, gc=False):
    annotation: _Annotation


def build_ade20k_full(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that exist.

    Raises:
        DataError: A json file names an id in two ways, or as for `build_archive`.
    """
    pairs = {split: list_pairs(arguments.root, split) for split in FOLDERS}
    jsons = [Path(pair.image).with_suffix(".json") for found in pairs.values() for pair in found]
    names = read_names(arguments.root, jsons)
    if arguments.classes == "847":
        classes = class_names(read_table("ade20k_847"))
        wanted = {name: class_id for class_id, name in enumerate(classes)}
        class_ids = {raw_id: wanted.get(name, IGNORE_ID) for raw_id, name in names.items()}
    else:
        order = sorted(names)
        classes = [names[raw_id] for raw_id in order]
        if len(set(classes)) < len(classes):  # two ids with the same name remain two classes
            classes = [
                f"{name} ({raw_id})" if classes.count(name) > 1 else name
                for name, raw_id in zip(classes, order, strict=True)
            ]
        class_ids = {raw_id: class_id for class_id, raw_id in enumerate(order)}
    recipe = {"classes": arguments.classes, "names": sorted(names.items())}
    return build_archive(ARCHIVE, arguments, classes, {**class_ids, 0: IGNORE_ID}, recipe=recipe)


@functools.cache
def list_pairs(root: Path, split: str) -> list[Pair]:
    """Lists all images of a split, in folders by scene, with the masks that they should have."""
    images = sorted((root / FOLDER / FOLDERS[split]).rglob("ADE_*.jpg"))
    # The folder of an image's own name holds masks of its objects.
    return [
        Pair(
            key=image.stem,
            image=str(image.relative_to(root)),
            mask=str(image.with_name(f"{image.stem}_seg.png").relative_to(root)),
        )
        for image in images
    ]


def read_names(root: Path, jsons: Iterable[Path]) -> dict[int, str]:
    """Maps raw ids to the full names of their classes, from the objects of all images.

    Raises:
        DataError: A file is missing or holds something else, or an id has two names.
    """
    decoder = msgspec.json.Decoder(_Content)
    names: dict[int, str] = {}
    for json in jsons:
        try:
            data = (root / json).read_bytes()
            try:
                content = decoder.decode(data)
            except (msgspec.ValidationError, UnicodeDecodeError):
                content = decoder.decode(data.decode("latin-1").encode())  # some files are Latin-1
        except FileNotFoundError:
            raise DataError(f"{root / json} is missing: expected the names of its objects. {ARCHIVE.layout}") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"{root / json} does not hold annotation.object[] with name and name_ndx ({error}): restore it"
            ) from error
        for found in content.annotation.object:
            known = names.setdefault(found.name_ndx, found.name.strip())
            if known != found.name.strip():
                raise DataError(
                    f"{root / json} calls {found.name_ndx} {found.name!r}, but other files call it {known!r}: restore it"
                )
    return names


def read_ids(path: Path) -> np.ndarray:
    """Reads the raw ids of an X_seg.png as uint16 of shape (H, W); raises DataError."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in ("RGB", "RGBA"):
                raise DataError(
                    f"{path} is a {image.mode} image: expected an X_seg.png of red, green and blue; restore it"
                )
            pixels_HW3 = np.asarray(image)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: restore it") from None
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} cannot be decoded ({error}): restore it") from error
    return (pixels_HW3[..., 0] // 10).astype(np.uint16) * 256 + pixels_HW3[..., 1]


ARCHIVE = Archive(
    name=NAME,
    version=VERSION,
    places=places(FOLDER, 25574),
    list_pairs=list_pairs,
    layout="Unpack ADE20K_2021_17_01.zip of https://groups.csail.mit.edu/vision/datasets/ADE20K into --root",
    ids="Expected ids that some image's json names (object[].name_ndx)",
    license=LICENSE,
    read_ids=read_ids,
)


if __name__ == "__main__":
    run(build_ade20k_full, Arguments)
