"""Finds which images and masks of a folder belong together, by the names of their folders and files.

images/a/b.jpg  masks/a/b.png                     also img_dir and ann_dir, JPEGImages and SegmentationClass, ...
train/images/b.jpg  train/masks/b.png             also Mapillary Vistas' training/v2.0/labels/b.png
a/b.jpg  a/b_mask.png                             also _seg, _gt, _label; Roboflow's masks
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from common.images import composed, is_image
from folders.mask_files import MASK_SUFFIXES
from folders.splits import usual_split
from kiloseg.storage.errors import DataError

IMAGE_FOLDERS = {
    "images",
    "image",
    "imgs",
    "img",
    "img_dir",
    "jpegimages",
    "leftimg8bit",
    "rgb",
    "image_2",
    "photos",
    "jpgs",
}
MASK_FOLDERS = {
    *("masks", "mask", "labels", "label", "annotations", "annotation", "ann_dir", "gt", "seg", "segmentation"),
    *("annot", "semantic", "labelmaps", "label_maps", "labelmap", "gts", "segs", "segmentation_masks"),
    *("segmentationclass", "segmentations", "gtfine", "groundtruth", "ground_truth", "annotations_detectron2", "anns"),
}
IGNORED_FOLDERS = {
    "segmentationobject",
    "instances",
    "instance",
    "semantic_rgb",
    "panoptic",
    "polygons",
    "v1.2",
    "overlays",
    "viz",
    "visualization",
}
SPLIT_AND_ROLE = re.compile(
    r"(?P<split>train|training|val|valid|validation|test)[-_ ]?(?P<role>[a-z_]+)", re.IGNORECASE
)
ROLE_AND_SPLIT = re.compile(
    r"(?P<role>[a-z_]+?)[-_ ]?(?P<split>train|training|val|valid|validation|test)", re.IGNORECASE
)
"""Folders such as trainannot, train_labels and masks_val say both what they hold and of which split."""
MASK_ENDS = re.compile(
    r"(?:[-_. ]?(masks?|seg|segmentation|gt|labels?|labelids|gtfine_labelids|annotation)|[-_]l)$", re.IGNORECASE
)
IMAGE_ENDS = re.compile(r"(?:[-_](leftimg8bit|image|img|rgb|sat))$", re.IGNORECASE)


class Pairs(NamedTuple):
    """Holds images with their masks, each a path relative to its root."""

    masks: dict[str, str]
    """Maps images to masks; empty if nothing fits the layout."""
    spare: int = 0
    """The number of files among the masks that belong to no image."""


def pair_by_folders(files: Iterable[str], masks_folder: str = "") -> Pairs:
    """Finds the mask of each image if images and masks lie in folders with such names.

    Args:
        files: the files, relative to a folder.
        masks_folder: a further name of folders of masks, in lower case.

    Raises:
        DataError: An image has no mask, or has two.
    """
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    others: dict[str, str] = {}
    lossy: list[str] = []
    for file in files:
        *folders, name = file.split("/")
        lower = [folder.lower() for folder in folders]
        if any(folder in IGNORED_FOLDERS or folder.startswith("panoptic_") for folder in lower):
            continue
        roles = [("mask", "") if masks_folder and folder == masks_folder else _role(folder) for folder in lower]
        place = next((n for n, (role, _) in enumerate(roles) if role), None)
        rest = [
            roles[n][1] if n == place else folder
            for n, folder in enumerate(folders)
            if (n != place or roles[n][1]) and lower[n] not in ("v2.0", "default")
        ]
        plain = "/".join([*rest, name])
        if place is None:
            others |= {file: plain} if is_image(name) else {}
        elif roles[place][0] == "image":
            images |= {file: plain} if is_image(name) else {}
        elif Path(name).suffix.lower() in MASK_SUFFIXES:
            masks[file] = plain
        elif is_image(name):
            lossy.append(file)
    if not images and masks and others and all("data" in plain.split("/")[:-1] for plain in others.values()):
        images = {
            file: _without_data(plain) for file, plain in others.items()
        }  # data/a.jpg with labels/a.png, by FiftyOne
    if not images and masks and any(split in {"train", "val"} for split in map(usual_split, _tops(others.values()))):
        images = others  # train/a.png with trainannot/a.png or train_labels/a.png
    if images and lossy and not masks:
        raise DataError(
            f"{lossy[0]} and {len(lossy) - 1} more in a folder of masks are of a format that changes ids: expected "
            f"{', '.join(MASK_SUFFIXES)}; save the masks as PNG from where they were drawn"
        )
    if not images or not masks:
        return Pairs({})
    return _matched(images, masks, "")


def _role(folder: str) -> tuple[str, str]:
    """Returns whether a folder holds "image" or "mask" by its name ("" if neither), and the split that the name also tells."""
    for role, names in (("image", IMAGE_FOLDERS), ("mask", MASK_FOLDERS)):
        if folder in names:
            return role, ""
        for pattern in (SPLIT_AND_ROLE, ROLE_AND_SPLIT):
            found = pattern.fullmatch(folder)
            if found is not None and found["role"].strip("_") in names:
                return role, found["split"]
    return "", ""


def _without_data(name: str) -> str:
    parts = name.split("/")
    parts.remove("data")
    return "/".join(parts)


def _tops(names: Iterable[str]) -> set[str]:
    return {name.partition("/")[0] for name in names if "/" in name}


def pair_beside(files: Iterable[str]) -> Pairs:
    """Finds the mask of each image if it lies beside it, under its name with a suffix such as _mask."""
    names = {file: file for file in files if is_image(file)}
    stems = {_stem(name): file for file, name in names.items()}
    masks = {
        file: name
        for file, name in names.items()
        if Path(name).suffix.lower() in MASK_SUFFIXES
        and MASK_ENDS.search(_stem(name))
        and MASK_ENDS.sub("", _stem(name)) in stems
    }
    images = {file: name for file, name in names.items() if file not in masks}
    return _matched(images, masks, "") if masks else Pairs({})


def pair_folders(images: Iterable[str], masks: Iterable[str], folder: Path) -> Pairs:
    """Finds the mask of each image if the user says which folder holds the masks; raises DataError as `pair_by_folders`."""
    return _matched({file: file for file in images}, {file: file for file in masks}, f"{folder}/")


def _matched(images: dict[str, str], masks: dict[str, str], where: str) -> Pairs:
    """Pairs `images` and `masks` (file to the name by which it is matched); `where` comes before a mask in messages."""
    exact: dict[str, str] = {}
    loose: dict[str, list[str]] = {}
    for file, name in masks.items():
        stem = _stem(name)
        if stem in exact:
            raise DataError(f"{where}{exact[stem]} and {where}{file} are masks of the same image: remove one of them")
        exact[stem] = file
        loose.setdefault(MASK_ENDS.sub("", stem), []).append(file)
    found, missing = {}, []
    for file, name in images.items():
        stem = _stem(name)
        candidates = [exact[stem]] if stem in exact else loose.get(stem) or loose.get(IMAGE_ENDS.sub("", stem), [])
        if len(candidates) > 1:
            raise DataError(
                f"{where}{candidates[0]} and {candidates[1]} may both be the mask of {file}: remove one of them"
            )
        if candidates:
            found[file] = candidates[0]
        else:
            missing.append(stem)
    unlabeled = [file for file in missing if any(usual_split(part) == "test" for part in file.split("/")[:-1])]
    if unlabeled:  # test sets are often published without labels
        print(f"{len(unlabeled)} images in folders of a test set have no mask and are left out")
        missing = [file for file in missing if file not in set(unlabeled)]
    if missing:
        others = f", and {len(missing) - 1:,} more of {len(images):,} masks" if len(missing) > 1 else ""
        raise DataError(
            f"{where}{missing[0]}.png is missing{others}. --masks must hold a PNG for each image, under the same name (or TIFF "
            "or BMP, or with _mask, _seg, _gt or _label after the name): for images/a/b.jpg masks/a/b.png"
        )
    image_of: dict[str, str] = {}
    for file, mask in found.items():
        other = image_of.setdefault(mask, file)
        if _stem(other) != _stem(file):
            raise DataError(
                f"{where}{mask} would be the mask of {other} and of {file}: rename one of the images, or its mask"
            )
    return Pairs(found, len(masks) - len(image_of))


def _stem(name: str) -> str:
    return composed(str(Path(name).with_suffix("")))
