"""Finds the files of COCO-like annotations, the split of each, and where their images lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from common.coco_json import CocoJson, Image
from common.images import composed, is_image, walk
from folders.splits import LEFT_OUT, split_in_name, usual_split
from kiloseg.storage.errors import DataError

HEAD = 2**16
"""The number of bytes of a json file that are read to detect its kind."""


def is_coco(path: Path) -> bool:
    """Whether a json file looks like COCO annotations, by its first and last bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        text = file.read(HEAD)
        file.seek(max(size - HEAD, 0))
        text += file.read(HEAD)
    return (
        text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
        and b'"images"' in text + b'"annotations"'
        and (b'"annotations"' in text or b'"categories"' in text)
        and b'"shapes"' not in text[:HEAD]
        and b'"segments_info"' not in text
    )


def find_jsons(folder: Path, given: Mapping[str, str], files: list[str] | None = None) -> dict[str, Path]:
    """Returns the annotation files by split, or the only one under "".

    Args:
        folder: the folder that holds them; the split is in their name (instances_val2017.json) or that of their folder
            (valid/...).
        given: what the user said about splits.
        files: the files to choose from, relative to the folder; without any, the json files directly inside.

    Raises:
        DataError: There is none, there are two for one split, or the split of some is unknown.
    """
    files = files or sorted(path.name for path in folder.glob("*.json"))
    found: dict[str, list[str]] = {}
    for file in files:
        parts = Path(file)
        split = split_in_name(parts.stem.partition(".")[0], given)
        if split is None:
            split = next((s for part in reversed(parts.parts[:-1]) if (s := usual_split(part, given))), "")
        found.setdefault(split, []).append(file)
    found.pop(LEFT_OUT, None)
    if not found:
        raise DataError(
            f"{folder} holds neither train.json nor val.json, nor other json files whose names state a split: expected one of "
            "them, or the path of a json file"
        )
    for split, of_split in found.items():
        if len(of_split) > 1:  # COCO has captions and keypoints besides the instances
            chosen = [file for file in of_split if Path(file).name.startswith("instances")] or of_split
            if len(chosen) < len(of_split):
                others = ", ".join(file for file in of_split if file not in chosen)
                print(f"{folder / chosen[0]} is used, {others} are not: name another file as PATH to use that one")
            of_split[:] = chosen
        if len(of_split) > 1:
            raise DataError(
                f"{folder / of_split[0]} and {folder / of_split[1]} are both annotations of "
                f"{'split ' + split if split else 'an unknown split'}: name one file, or one folder with a "
                "file for each split"
            )
    if "" in found and len(found) > 1:
        name, others = Path(found[""][0]), ", ".join(sorted(found.keys() - {""}))
        raise DataError(
            f"{folder / name}: its split is unknown, though other files are of {others}: "
            f"state it with --splits {name.stem}=train, =val, =test, or ={LEFT_OUT} to leave it out"
        )
    return {split: folder / of_split[0] for split, of_split in found.items()}


class ImageFinder:
    """Finds the files of annotated images below a folder.

    Args:
        root: the folder.
        files: the files in it, relative to it; if they are not given, they are listed once.
    """

    def __init__(self, root: Path, files: list[str] | None = None) -> None:
        self._files = {composed(file): file for file in (walk(root) if files is None else files) if is_image(file)}
        self._by_name: dict[str, list[str]] = {}
        for file in self._files.values():
            self._by_name.setdefault(composed(Path(file).name).lower(), []).append(file)

    def find(self, image: Image, split: str, json_path: Path, beside: str) -> str:
        """Returns the file of an image, relative to the root, or the name that it should have if there is no such file.

        It is looked up under file_name, in the folder of the split, beside the json file, and by its last name alone if exactly
        one image has that name, since tools write paths of other machines.

        Args:
            image: an image with file_name, or coco_url.
            split: the split of its json file, or "".
            json_path: the json file, for messages.
            beside: the folder of the json file relative to the root, or "".

        Raises:
            DataError: A name leads out of the folder.
        """
        name = composed((image.file_name or "/".join(image.coco_url.split("/")[-2:])).replace("\\", "/"))
        if name not in self._files and composed(unquote(name)) != name and self._alike(unquote(name)):
            name = composed(unquote(name))
        windows = len(name) > 1 and name[1] == ":"
        if not name or ((name.startswith("/") or ".." in name.split("/")) and not self._alike(name)):
            raise DataError(
                f"{json_path}: image {image.id} has file_name {image.file_name!r}: expected a path inside --images"
            )
        candidates = [f"{beside}/{name}"] * bool(beside) + [f"{split}/{name}"] * bool(split) + [name]
        for candidate in candidates:
            if candidate in self._files:
                return self._files[candidate]
        alike = self._alike(name)
        if len(alike) > 1 and split:
            alike = [file for file in alike if any(usual_split(part) == split for part in file.split("/")[:-1])]
        if len(alike) == 1:
            return alike[0]
        if name.startswith("/") or windows or ".." in name.split("/"):
            raise DataError(
                f"{json_path}: image {image.id} has file_name {image.file_name!r}: expected a path inside --images, or a last "
                "name that exactly one image there has"
            )
        return name

    def _alike(self, name: str) -> list[str]:
        """Returns the images with the same last name: in the same case or, without any, in any case."""
        last = composed(Path(name).name)
        found = self._by_name.get(last.lower(), [])
        return [file for file in found if composed(Path(file).name) == last] or found


def load(jsons: Mapping[str, Path]) -> dict[str, CocoJson]:
    """Returns the content of each file; raises DataError."""
    return {split: CocoJson(path) for split, path in jsons.items()}
