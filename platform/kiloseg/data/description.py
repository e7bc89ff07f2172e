"""Reads and writes dataset.json, the description of a data set, which names its classes, splits and shards.

    dataset.json        name, class names, ignore id, splits with their shards (samples, bytes, sha256), license, command
    index.parquet       one row per sample, see `index`
    train-000000.tar    KEY.jpg (or .png), KEY.mask.png, KEY.json; see `codec` and `writing.shard`

This needs only NumPy and Pillow: webdataset reads the shards, but importing it imports torch, which would cost every
process of a build seconds and 200 MB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kiloseg.data.codec import IGNORE_ID
from kiloseg.storage.credentials import shown
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import LocalFolder, open_folder

FORMAT = "kiloseg-shards-1"
MAX_CLASSES = 65535
DESCRIPTION = "dataset.json"
AGAIN = f"build the data set again with --rebuild (the command is in {DESCRIPTION})"
"""What helps if a part of a data set is damaged, in messages that do not know its command."""
_CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Describes a finished shard file, as dataset.json lists it."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Holds the content of dataset.json."""

    name: str
    classes: list[str]
    """One name per class; its position is the class id."""
    background: int | None
    """Id of the class that means 'nothing in particular', or None if the data set has no such class."""
    license: str
    command: str
    """The command line that builds the data set again."""
    recipe: dict[str, Any]
    """Everything that the data set was built from. A builder builds it again when this changes."""
    splits: dict[str, list[Shard]] = field(default_factory=dict)
    report: dict[str, Any] | None = None
    """What the build found and warned about, see `writing.report`; None in data sets of earlier versions."""

    @property
    def num_classes(self) -> int:
        """The number of classes C, including the background."""
        return len(self.classes)

    def rebuild_command(self, directory: Path | str) -> str:
        """Returns the command line that builds the data set in `directory` again even if it seems to be complete.

        It is one for a shell in any folder of this machine, also if the data set was moved after it was built.
        """
        try:
            words = shlex.split(self.command)
        except ValueError:  # written by something else
            return f"{self.command} --rebuild"
        folder = open_folder(directory)
        if "--out" in words[:-1]:
            words[words.index("--out") + 1] = (
                folder.location if isinstance(folder, LocalFolder) else shown(folder.location)
            )
        script = next((word for word in words if word.endswith(".py")), "")
        if (_CHECKOUT / script).is_file():
            words[words.index(script)] = str(_CHECKOUT / script)
        return f"{shlex.join(words)} --rebuild"

    @property
    def digest(self) -> str:
        """The sha256 over class names and shard digests, which is equal exactly if the samples are equal."""
        content = [self.classes, {split: [shard.sha256 for shard in shards] for split, shards in self.splits.items()}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def shards(self, split: str) -> list[Shard]:
        """Returns the shards of a split. Raises DataError for a split that the data set does not have."""
        if split not in self.splits:
            raise DataError(
                f"data set {self.name} has no split {split!r}; it has: {', '.join(self.splits) or 'none'}. Name one of "
                f"these, or give samples of {split} to the command that built it: {self.command}"
            )
        return self.splits[split]

    def num_samples(self, split: str) -> int:
        """Returns the number of samples of a split. Raises the same errors as `shards`."""
        return sum(shard.samples for shard in self.shards(split))


def write_info(directory: Path | str, info: DatasetInfo) -> None:
    """Writes dataset.json. This is the last step of a build, so a folder that contains this file is complete."""
    content = {
        "format": FORMAT,
        "name": info.name,
        "num_classes": info.num_classes,
        "ignore_id": IGNORE_ID,
        "background": info.background,
        "licence": info.license,
        "command": info.command,
        "recipe": info.recipe,
        "splits": {split: [dataclasses.asdict(shard) for shard in shards] for split, shards in info.splits.items()},
        "report": info.report,
        "classes": info.classes,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    open_folder(directory).write(DESCRIPTION, text.encode())


def read_info(directory: Path | str) -> DatasetInfo:
    """Reads dataset.json.

    Raises:
        DataError: there is no such file, it has another format or missing fields, or a shard name leads out of the folder.
    """
    folder = open_folder(directory)
    path = folder.at(DESCRIPTION)
    try:
        text = folder.read(DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} does not exist: expected a data set folder, such as python datasets/glyphs.py --out DIR makes; if a build "
            "was interrupted, the same command finishes it"
        ) from None
    except PermissionError as error:
        raise DataError(f"{path} cannot be read ({error}); correct its permissions") from error
    try:
        content = json.loads(text.decode())
        if content["format"] != FORMAT:
            raise DataError(
                f"{path}: format is {content['format']!r}, expected {FORMAT!r}; build the data set again with --rebuild"
            )
        splits = {split: [Shard(**shard) for shard in shards] for split, shards in content["splits"].items()}
        info = DatasetInfo(
            name=content["name"],
            classes=content["classes"],
            background=content["background"],
            license=content["licence"],
            command=content["command"],
            recipe=content["recipe"],
            splits=splits,
            report=content.get("report"),
        )
        declared = content["num_classes"], content["ignore_id"]
        _check_kinds(info)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); restore it, or build the data set again with --rebuild"
        ) from error
    if declared != (info.num_classes, IGNORE_ID) or not 2 <= info.num_classes <= MAX_CLASSES:
        raise DataError(
            f"{path}: num_classes {declared[0]} with {info.num_classes} class names and ignore_id {declared[1]}: expected "
            f"as many as names, 2 to {MAX_CLASSES}, and ignore_id {IGNORE_ID}"
        )
    if info.background is not None and not 0 <= info.background < info.num_classes:
        raise DataError(f"{path}: background is {info.background}, expected a class id or null")
    for shards in splits.values():
        for shard in shards:
            if "/" in shard.name or "\\" in shard.name or shard.name.startswith("."):
                raise DataError(f"{path}: shard name {shard.name!r} must be a plain file name beside dataset.json")
    return info


def _check_kinds(info: DatasetInfo) -> None:
    """Checks the types of the fields and raises TypeError if one is wrong."""
    if not isinstance(info.classes, list) or not all(isinstance(name, str) for name in info.classes):
        raise TypeError("classes must be a list of names")
    if info.background is not None and type(info.background) is not int:
        raise TypeError("background must be a class id or null")
    for shard in itertools.chain.from_iterable(info.splits.values()):
        if not isinstance(shard.name, str) or not all(type(n) is int and n >= 0 for n in (shard.samples, shard.bytes)):
            raise TypeError(f"{shard} must have a name and whole numbers")
        if not isinstance(shard.sha256, str) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise TypeError(f"{shard} must have a sha256 of 64 hexadecimal digits")


def check_shards(directory: Path | str, info: DatasetInfo, split: str) -> None:
    """Checks cheaply before a run that every shard of the split exists with its full size.

    Raises:
        DataError: a shard is missing or has another size; the message names the first one.
    """
    folder = open_folder(directory)
    sizes = folder.sizes()
    for shard in info.shards(split):
        path = folder.at(shard.name)
        if shard.name not in sizes:
            raise DataError(
                f"{path} is missing, though {DESCRIPTION} lists it; restore it or rebuild: "
                f"{info.rebuild_command(directory)}"
            )
        if sizes[shard.name] != shard.bytes:
            raise DataError(
                f"{path} has {sizes[shard.name]} bytes, expected {shard.bytes}; restore it or rebuild: "
                f"{info.rebuild_command(directory)}"
            )
