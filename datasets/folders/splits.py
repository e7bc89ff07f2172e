"""Finds which split a folder, a file or a path belongs to, by the names that tools give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from common.images import composed
from common.pairs import order, safe_key
from kiloseg.data.writing.shard import MAX_KEY_BYTES
from kiloseg.storage.errors import DataError

IMAGES = r"((images?|imgs?|photos|rgb|data)[-_ ])?"
USUAL = {
    "train": re.compile(IMAGES + r"(train|training|trn)[-_]?(set|data|images|imgs)?(\d{4})?"),
    "val": re.compile(IMAGES + r"(val|valid|validation|dev)[-_]?(set|data|images|imgs)?(\d{4})?"),
    "test": re.compile(IMAGES + r"(test|testing|tst)[-_]?(set|data|dev|images|imgs)?(\d{4})?"),
}
"""Usual names of split folders, in any case: COCO uses train2017, ADE20K training, Roboflow valid, others images_train."""

LEFT_OUT = "none"

Item = TypeVar("Item")


def usual_split(name: str, given: Mapping[str, str] | None = None) -> str | None:
    """Returns the split that a folder of this name is, by the user's choice or its usual names, or None."""
    if given and name in given:
        return given[name]
    return next((split for split, pattern in USUAL.items() if pattern.fullmatch(name.lower())), None)


def split_in_name(stem: str, given: Mapping[str, str] | None = None) -> str | None:
    """Returns the split that a file's name holds as a word, as in instances_train2017, or None if it holds none or several."""
    if given and stem in given:
        return given[stem]
    found = {usual_split(word) for word in re.split(r"[-_.\s]+", stem)} - {None}
    return found.pop() if len(found) == 1 else None


def parse_splits(words: Sequence[str]) -> dict[str, str]:
    """Parses FOLDER=SPLIT words of the command line; raises ValueError."""
    given = {}
    for word in words:
        name, mark, split = word.rpartition("=")
        if not mark or not name or split not in (*USUAL, LEFT_OUT):
            raise ValueError(f"--splits {word}: expected FOLDER=train, FOLDER=val, FOLDER=test or FOLDER={LEFT_OUT}")
        given[name] = split
    return given


def divide_by_folders(files: Iterable[str], given: Mapping[str, str], what: str) -> dict[str, list[str]] | None:
    """Groups files by the split that a folder of their path names or, if the name of every file holds one, as COCO_val2014_1.jpg,
    by that; returns None if neither does.

    The topmost folder level that is a split for any file decides for all: of a/train/x.jpg it is the second.

    Args:
        files: the relative paths.
        given: what the user said.
        what: where the files are, for messages.

    Raises:
        DataError: Some files lie in a folder of a split and others do not, or folders only look as if they were splits.
    """
    files = list(files)
    for depth in range(max((file.count("/") for file in files), default=0)):
        names = {file.split("/")[depth] for file in files if file.count("/") > depth}
        if not any(usual_split(name, given) for name in names):
            _check_no_splits(names, given, what)
            continue
        found: dict[str, list[str]] = {}
        for file in files:
            parts = file.split("/")
            name = parts[depth] if len(parts) > depth + 1 else ""
            split = usual_split(name, given) if name else None
            if split is None:
                known = sorted(name for name in names if usual_split(name, given))
                raise DataError(
                    f"{what}: {file} is not in a split's folder, though {', '.join(known)} exists: expected all images in "
                    f"such folders; state its split with --splits {name or 'FOLDER'}=train, =val, =test, or "
                    f"={LEFT_OUT} to leave it out"
                )
            if split != LEFT_OUT:
                found.setdefault(split, []).append(file)
        return found
    by_name: dict[str, list[str]] = {}
    for file in files:
        by_name.setdefault(split_in_name(Path(file).stem, given) or "", []).append(file)
    if "" in by_name or "train" not in by_name or len(by_name) < 2:
        return None
    print(f"{what}: the names of all files hold {', '.join(by_name)}, which are taken as their splits")
    return by_name


def _check_no_splits(names: Iterable[str], given: Mapping[str, str], what: str) -> None:
    """Raises DataError if names of folders hold those of different splits, as train_v2 and val_v2 do."""
    held = {name: split for name in sorted(names) if (split := split_in_name(name, given)) is not None}
    if len(set(held.values())) > 1:
        said = " ".join(f"{name}={split}" for name, split in held.items())
        raise DataError(f"{what}: the folders {', '.join(held)} look like splits: say which with --splits {said}")


def divide(keys: Mapping[str, str], val_fraction: float, seed: int) -> dict[str, list[str]]:
    """Divides files into train and val, with at least one file each unless the fraction is 0."""
    files = sorted(keys, key=lambda file: order(f"{seed}/{keys[file]}"))
    print(
        f"no folder or list tells train from val: a share of {val_fraction:g} of {len(files)} images is set aside as val"
    )
    num_val = min(max(round(val_fraction * len(files)), 1), len(files) - 1) if val_fraction > 0 else 0
    splits = {"train": files[num_val:], "val": files[:num_val]}
    return {split: chosen for split, chosen in splits.items() if chosen}


def without_test(splits: dict[str, list[Item]], *, keep: bool, name: str) -> dict[str, list[Item]]:
    """Returns the splits that are built: test only if it is requested. Prints a line if it is left out."""
    if "test" in splits and not keep:
        print(f"{name}: {len(splits['test'])} images of split test are left out; --test includes them")
    return {split: files for split, files in splits.items() if files and (keep or split != "test")}


def keys_of(files: Iterable[str]) -> dict[str, str]:
    """Returns a key per image file, from its path without suffix.

    Names that differ only in what a key cannot hold, such as `IMG (1)` and `IMG_(1)`, each get a digest of the name. One that is
    too long for a shard is shortened and gets a digest too.

    Raises:
        DataError: Two files have the same name but for the suffix, or one file is listed twice.
    """
    files = list(files)
    names: dict[str, list[str]] = {}
    by_stem: dict[str, str] = {}
    for file in files:
        stem = composed(str(Path(file).with_suffix("")))
        if stem in by_stem:
            raise DataError(
                f"images {by_stem[stem]} and {file} would both be sample {safe_key(stem)}: rename one of them"
            )
        by_stem[stem] = file
        names.setdefault(safe_key(stem), []).append(stem)
    keys = {}
    for key, stems in names.items():
        for stem in stems:
            keys[by_stem[stem]] = _unique(key, stem) if len(stems) > 1 or len(key.encode()) > MAX_KEY_BYTES else key
    return keys


def _unique(key: str, stem: str) -> str:
    digest = order(stem).hex()[:12]
    room = MAX_KEY_BYTES - len(digest) - 1
    return f"{key.encode()[:room].decode(errors='ignore')}-{digest}"
