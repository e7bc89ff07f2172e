"""Checks that a data set matches its description: digests, pairs, sizes, ids, and the index against the shards.

    python -m kiloseg.data.verify DIR

It reads every byte, prints one line for every problem, and ends with exit code 1 if there is any.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import tarfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any

import tyro
from tqdm import tqdm

from kiloseg.data.codec import IGNORE_ID, count_ids, decode_image, decode_mask
from kiloseg.data.description import Shard, read_info
from kiloseg.data.index import read_index
from kiloseg.data.raw import raw_samples
from kiloseg.data.writing.processes import in_processes
from kiloseg.data.writing.report import image_digest
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import open_folder

SHOWN = 20
"""Number of duplicate images that are named in the output."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Checks every shard, sample and index row of a data set; exit code 1 if there is a problem."""

    directory: tyro.conf.Positional[str]
    """Folder that contains dataset.json, or its URL."""
    processes: int = os.cpu_count() or 1
    """Number of processes that read at the same time."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes = {self.processes}: expected at least 1")


@dataclass(frozen=True, kw_only=True)
class _Task:
    split: str
    shard: Shard


def verify(directory: str, *, processes: int) -> list[str]:
    """Returns every problem of a data set, each with its file and sample; empty if there is none. Raises as `examine` does."""
    return examine(directory, processes=processes)[0]


def examine(directory: str, *, processes: int) -> tuple[list[str], list[str]]:
    """Returns every problem of a data set, each with its file and sample, and every image that occurs twice.

    Images that occur twice (equal bytes) are not damage. If they are in two splits, validation measures memorization.

    Raises:
        ConnectionError: the filesystem of the data set does not answer.
        DataError: dataset.json is missing or damaged, so nothing can be compared.
    """
    info = read_info(directory)
    folder = open_folder(directory)
    tasks = [_Task(split=split, shard=shard) for split in info.splits for shard in info.shards(split)]
    problems = [
        f"{folder.at(name)}: {count} times in dataset.json"
        for name, count in Counter(task.shard.name for task in tasks).items()
        if count > 1
    ]
    listed = {task.shard.name: task.split for task in tasks}
    problems += [
        f"{folder.at(name)}: a shard that dataset.json does not list"
        for name in folder.sizes()
        if name.endswith(".tar") and name not in listed
    ]
    indexed = True
    try:
        groups = (
            read_index(directory, columns=["split", "shard"])
            .group_by(["split", "shard"])
            .aggregate([([], "count_all")])
        )
    except DataError as error:
        indexed = False
        problems.append(str(error))
    else:
        for group in groups.to_pylist():
            if listed.get(group["shard"]) != group["split"]:
                problems.append(
                    f"{folder.at('index.parquet')}: {group['count_all']} rows of shard {group['shard']} in split "
                    f"{group['split']}, which dataset.json does not list"
                )
    work = functools.partial(_shard_problems, location=folder.location, num_classes=info.num_classes, indexed=indexed)
    found: dict[_Task, list[str]] = {}
    images: dict[_Task, dict[str, str]] = {}
    with (
        tqdm(total=sum(task.shard.samples for task in tasks), unit=" samples", desc=info.name) as bar,
        closing(in_processes(work, list(dict.fromkeys(tasks)), processes=processes)) as results,
    ):
        for task, (faults, images[task]) in results:
            found[task] = [f"{folder.at(task.shard.name)}: {fault}" for fault in faults]
            bar.update(task.shard.samples)
    for task in dict.fromkeys(tasks):
        problems += found[task]
    return problems, _twins(images)


def _twins(images: dict[_Task, dict[str, str]]) -> list[str]:
    """Returns a line for each image with the same bytes as another. `images` maps key to digest for each shard."""
    first: dict[str, str] = {}
    twins = []
    for task in sorted(images, key=lambda task: task.shard.name):
        for key, digest in images[task].items():
            name = f"sample {key} of {task.split}"
            if digest in first:
                twins.append(f"{task.shard.name}: {name} has the same image, byte for byte, as {first[digest]}")
            else:
                first[digest] = name
    return twins


class _Hashing:
    """Wraps a file and hashes and counts its bytes as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int = 2**20) -> bytes:
        block = self.file.read(size)
        self.digest.update(block)
        self.bytes += len(block)
        return block


def _shard_problems(task: _Task, *, location: str, num_classes: int, indexed: bool) -> tuple[list[str], dict[str, str]]:
    """Returns the problems of one shard, each with its sample if it has one, and the digest of each image by key."""
    folder = open_folder(location)
    try:
        opened = folder.open(task.shard.name)
    except FileNotFoundError:
        return ["is missing, though dataset.json lists it"], {}
    rows: dict[str, dict[str, Any]] = {}
    problems = []
    if indexed:
        for row in read_index(location, shard=task.shard.name).to_pylist():
            if row["key"] in rows:
                problems.append(f"sample {row['key']}: two rows in index.parquet")
            rows[row["key"]] = row
    keys: set[str] = set()
    images: dict[str, str] = {}
    position = 0
    with opened:
        file = _Hashing(opened)
        try:
            for key, parts in raw_samples(file):  # type: ignore[arg-type] # tarfile only reads
                position += 1
                faults, found = _sample(parts, num_classes)
                if key in keys:
                    faults.append("its key occurs twice")
                elif indexed:
                    faults += _row_faults(found, rows.pop(key, None))
                keys.add(key)
                images[key] = image_digest(parts.get("jpg") or parts.get("png") or key.encode())
                problems += [f"sample {key}: {fault}" for fault in faults]
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            problems.append(f"cannot be read after {position} samples: {error}")
        else:
            if position != task.shard.samples:
                problems.append(f"has {position} samples, dataset.json lists {task.shard.samples}")
            problems += [f"sample {key}: in index.parquet, but not in the shard" for key in rows]
        while file.read():
            pass
    if file.bytes != task.shard.bytes:
        problems.insert(0, f"has {file.bytes} bytes, expected {task.shard.bytes}")
    elif file.digest.hexdigest() != task.shard.sha256:
        problems.insert(0, f"has sha256 {file.digest.hexdigest()}, expected {task.shard.sha256}")
    return problems, images


def _sample(parts: dict[str, bytes], num_classes: int) -> tuple[list[str], dict[str, Any]]:
    """Returns the problems of a sample, and what its index row must contain as far as that is known."""
    faults = []
    found: dict[str, Any] = {}
    images = [part for part in ("jpg", "png") if part in parts]
    if len(images) != 1:
        faults.append(f"expected one image (.jpg or .png); it has: {', '.join(sorted(parts))}")
    size = None
    for part in images[:1]:
        try:
            size = decode_image(parts[part]).shape[:2]
            found["height"], found["width"] = size
        except (OSError, ValueError, SyntaxError) as error:
            faults.append(f"its .{part} cannot be decoded: {error}")
    if "mask.png" not in parts:
        faults.append(f"expected a mask (.mask.png); it has: {', '.join(sorted(parts))}")
    else:
        try:
            mask = decode_mask(parts["mask.png"])
        except (OSError, ValueError, SyntaxError) as error:
            faults.append(f"its .mask.png cannot be decoded: {error}")
        else:
            if size is not None and mask.shape != size:
                faults.append(f"mask is {mask.shape}, its image {size} (height, width)")
            found["class_ids"], found["class_pixels"] = (counted.tolist() for counted in count_ids(mask))
            outside = [c for c in found["class_ids"] if c >= num_classes]
            if outside:
                faults.append(
                    f"mask has class id {', '.join(map(str, outside))}, expected 0 to {num_classes - 1} or {IGNORE_ID} for ignore"
                )
    try:
        if not isinstance(json.loads(parts.get("json", b"")), dict):
            faults.append("its .json is not an object")
    except ValueError as error:
        faults.append(f"its .json is missing or cannot be read: {error}")
    return faults, found


def _row_faults(found: dict[str, Any], row: dict[str, Any] | None) -> list[str]:
    if row is None:
        return ["not in index.parquet"]
    return [
        f"index.parquet says {name} = {_short(row[name])}, the shard {_short(value)}"
        for name, value in found.items()
        if row[name] != value
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def main(arguments: Arguments) -> int:
    """Prints every problem and one summary line. Returns the exit code."""
    try:
        problems, twins = examine(arguments.directory, processes=arguments.processes)
        info = read_info(arguments.directory)
    except (ConnectionError, DataError) as error:
        print(error)
        return 1
    for line in (*problems, *(f"warning: {twin}" for twin in twins[:SHOWN])):
        print(line)
    if len(twins) > SHOWN:
        print(f"warning: {len(twins) - SHOWN} more images occur twice")
    if problems:
        again = info.rebuild_command(arguments.directory)
        print(f"{len(problems)} problems; restore what is damaged, or build the data set again: {again}")
        return 1
    shards = sum(len(info.shards(split)) for split in info.splits)
    samples = sum(info.num_samples(split) for split in info.splits)
    print(f"{arguments.directory}: {shards} shards with {samples} samples are whole, digest {info.digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
