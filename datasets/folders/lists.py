"""Reads lists of images by split, such as ImageSets/Segmentation/train.txt of PASCAL VOC, and finds listed images among files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from common.class_names import read_text
from common.images import composed
from folders.splits import LEFT_OUT, split_in_name, usual_split
from kiloseg.storage.errors import DataError

FOLDERS = ("ImageSets/Segmentation", "ImageSets/Main", "ImageSets", "splits", "")
"""These folders hold lists: those of PASCAL VOC and CVAT, and of CamVid and others beside the images."""


class Ends:
    """Finds files by the end of their path, since lists name files relative to other folders, or with paths of other machines.

    Args:
        files: the files; a name without suffix finds them too.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._found: dict[str, list[str]] = {}
        for file in files:
            for name in {composed(file), composed(str(PurePosixPath(file).with_suffix("")))}:
                while name:
                    self._found.setdefault(name, []).append(file)
                    name = name.partition("/")[2]

    def find(self, name: str) -> str | None:
        """Returns the only file whose path ends as the name does, for the longest end that any has, or None."""
        parts = [part for part in composed(name).replace("\\", "/").split("/") if part not in ("", ".", "..")]
        for start in range(len(parts)):
            found = self._found.get("/".join(parts[start:]), [])
            if found:
                return found[0] if len(found) == 1 else None
        return None


def read_lists(
    root: Path, texts: Iterable[str], images: Iterable[str], given: Mapping[str, str]
) -> dict[str, list[str]] | None:
    """Returns the images by the lists below a folder, or None if there are none that name a split.

    Args:
        root: the folder.
        texts: its txt files, relative to it.
        images: the images to find, relative to it.
        given: what the user said about splits.

    Raises:
        DataError: A list names an image that is not there, an image is in two lists, or two lists are of one split.
    """
    ends = Ends(images)
    for suffix in FOLDERS:
        of_folder: dict[str, list[str]] = {}
        for text in texts:
            folder = text.rpartition("/")[0]
            if folder == suffix or (suffix and f"/{folder}".endswith(f"/{suffix}")):
                of_folder.setdefault(folder, []).append(text)
        for folder, inside in of_folder.items():
            lists = _by_split(root, inside, given)
            found = {split: _read(root / text, ends, required=bool(suffix)) for split, text in lists.items()}
            found = {split: listed for split, listed in found.items() if listed}
            if not found:
                continue
            _check_apart(root / folder, found)
            return found
    return None


def _by_split(root: Path, texts: list[str], given: Mapping[str, str]) -> dict[str, str]:
    """Maps splits to lists: those that are called exactly as a split or, without any, those whose name holds one as a word."""
    for name_split in (usual_split, split_in_name):
        found: dict[str, str] = {}
        for text in texts:
            split = name_split(Path(text).stem, given)
            if split is None or split == LEFT_OUT:
                continue
            if split in found:
                raise DataError(
                    f"{root / found[split]} and {root / text} are both lists of split {split}: say which counts with "
                    f"--splits {Path(text).stem}={LEFT_OUT}"
                )
            found[split] = text
        if found:
            return found
    return {}


def _read(path: Path, ends: Ends, *, required: bool) -> list[str]:
    """Returns the images that a list names: one a line, with or without suffix; what follows behind a blank is not read."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    found = {line: ends.find(line) or ends.find(line.split()[0]) for line in lines}
    unknown = [line for line, image in found.items() if image is None]
    if unknown and (required or len(unknown) < len(found)):
        raise DataError(
            f"{path} lists {unknown[0]!r}, and {len(unknown) - 1} more, for which no image with a label exists (or there are "
            "several): expected the names of images, with or without suffix; restore the files or correct the list"
        )
    images = [image for image in found.values() if image is not None]
    if not unknown and len(set(images)) < len(lines):
        twice = Counter(found[line] for line in lines).most_common(1)[0][0]
        raise DataError(f"{path} lists {twice!r} twice: expected each image once; restore the file")
    return images


def _check_apart(folder: Path, found: Mapping[str, list[str]]) -> None:
    split_of: dict[str, str] = {}
    for split, images in found.items():
        for image in images:
            if image in split_of:
                raise DataError(
                    f"{folder} lists {image} for {split_of[image]} and for {split}: expected each image in one split; correct "
                    "the lists"
                )
            split_of[image] = split
