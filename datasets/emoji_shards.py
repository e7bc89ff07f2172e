"""Builds the emoji data set from a bank on a machine that has only NumPy and Pillow.

    PYTHONPATH=platform python datasets/emoji_shards.py --bank emoji-bank.tar --out data/emoji

The shards are those of datasets/emoji.py, byte for byte. Without pyarrow, which Parquet needs, the rows of the index are kept in
index.jsonl; the same command makes index.parquet from them on a machine with pyarrow, and so does datasets/emoji.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shlex
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from kiloseg.data.description import DESCRIPTION, DatasetInfo, Shard, check_shards, read_info, write_info
from kiloseg.data.writing.shard import write_shard
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import open_folder
from synthetic.emoji_bank import Bank, read_bank
from synthetic.emoji_photographs import by_credit, photographs_of
from synthetic.emoji_scenes import NAME, Scenes, describe, make_scenes

ROWS = "index.jsonl"
INDEX = "index.parquet"
ATTRIBUTION = "ATTRIBUTION.md"
ENOUGH = 5
"""The number of samples of a validation split that should show a class, so that its IoU is meaningful."""

Part = tuple[str, int, int, int]
"""A part is a split, the number of a shard, its first sample, and the end of its samples."""


def write_emoji(
    bank_path: Path, scenes: Scenes, out: Path, *, shard_size: int, processes: int, rebuild: bool = False
) -> DatasetInfo:
    """Writes shards, index, ATTRIBUTION.md and dataset.json, unless `out` already holds that data set.

    With `rebuild`, a data set that is there is written again, for example if `python -m kiloseg.data.verify` finds damage.

    Raises:
        DataError: There is no bank, or `out` holds something else.
    """
    bank, digest = read_bank(bank_path)
    info = describe(
        scenes, bank, digest=digest, shard_size=shard_size, command=_command(bank_path, scenes, out, shard_size)
    )
    found = _found(out, info, rebuild=rebuild)
    if found is not None:
        complete_index(out)
        print(f"{out} is up to date: {found.num_classes} classes, digest {found.digest}")
        return found
    parts: list[Part] = [
        (split, number, start, min(start + shard_size, count))
        for split, count in scenes.samples.items()
        for number, start in enumerate(range(0, count, shard_size))
    ]
    out.mkdir(parents=True, exist_ok=True)
    for name in (DESCRIPTION, INDEX):  # until all is written again, so that nobody reads half of it
        (out / name).unlink(missing_ok=True)
    write = functools.partial(
        _write, out=out, scenes=scenes, bank=str(bank_path.absolute()), digest=digest, num_classes=info.num_classes
    )
    splits: dict[str, list[Shard]] = {}
    shown: dict[str, Counter[int]] = {split: Counter() for split in scenes.recipe.validation_splits}
    partial = out / (ROWS + ".partial")
    with (
        ProcessPoolExecutor(min(processes, len(parts)), mp_context=get_context("spawn")) as pool,
        partial.open("w", encoding="utf-8") as file,
    ):
        for part, (shard, rows) in zip(parts, pool.map(write, parts), strict=True):
            splits.setdefault(part[0], []).append(shard)
            file.writelines(json.dumps({"split": part[0], **row}) + "\n" for row in rows)
            if part[0] in shown:
                shown[part[0]].update(class_id for row in rows for class_id in row["class_ids"])
            print(f"{shard.name}: {shard.samples} samples, {shard.bytes / 1e6:.1f} MB", flush=True)
    partial.replace(out / ROWS)
    write_attribution(out, bank, scenes)
    info = dataclasses.replace(info, splits=splits)
    write_info(out, info)
    complete_index(out)
    print(f"{out}: {info.num_classes} classes, digest {info.digest}")
    for split, samples in shown.items():
        print(coverage([samples[class_id] for class_id in range(info.num_classes)], split, scenes.samples[split]))
    return info


def complete_index(out: Path | str) -> None:
    """Makes index.parquet from index.jsonl, unless it exists or pyarrow is missing here; the same command does it elsewhere."""
    folder = open_folder(out)
    entries = folder.entries()
    if not {ROWS, DESCRIPTION} <= set(entries):
        return
    if INDEX not in entries:
        try:
            from kiloseg.data.index import write_index
        except ModuleNotFoundError:
            return
        write_index(out, [json.loads(line) for line in folder.read(ROWS).splitlines()])
    folder.remove(ROWS)


def write_attribution(out: Path | str, bank: Bank, scenes: Scenes) -> None:
    """Writes, beside the shards, whose pictures they hold and under which licenses."""
    lines = [
        "# Sources of these pictures",
        "",
        "Scenes of the emoji data set of kiloseg hold sprites and photographs of others. All were resized, rotated, mirrored,",
        "recolored, cut and drawn over one another. Whoever passes the data set on must include this file.",
        "",
        "| picture | split | source and license |",
        "|---|---|---|",
    ]
    vendors = scenes.recipe.vendors
    for vendor, credit in bank.credits.items():
        splits = ", ".join(split for split, shown in vendors.items() if vendor in shown)
        lines.append(f"| sprites: {vendor} | {splits} | {credit} |")
    for split in vendors:
        for credit, names in by_credit(photographs_of(split, bank.photographs)).items():
            lines.append(f"| background: {', '.join(names)} | {split} | {credit.replace('|', '/')} |")
    open_folder(out).write(ATTRIBUTION, ("\n".join(lines) + "\n").encode())


def coverage(samples_per_class: Iterable[int], split: str, num_samples: int) -> str:
    """Returns a line on how often a validation split shows the rarest class; `samples_per_class` begins with the background."""
    fewest = min(list(samples_per_class)[1:])
    line = f"every class is labeled in at least {fewest} samples of {split}"
    if fewest < ENOUGH:
        line += f"; at least {ENOUGH} are advised: raise {split}_samples = {num_samples}"
    return line


def _write(
    part: Part, *, out: Path, scenes: Scenes, bank: str, digest: str, num_classes: int
) -> tuple[Shard, list[dict[str, Any]]]:
    split, number, start, stop = part
    samples = make_scenes(split, start, stop, scenes=scenes, bank=bank, digest=digest)
    return write_shard(out / f"{split}-{number:06d}.tar", samples, num_classes=num_classes)


def _found(out: Path, info: DatasetInfo, *, rebuild: bool) -> DatasetInfo | None:
    """Returns the same data set if it is complete in `out`, or None if there is nothing or it is to be built again.

    Raises:
        DataError: There is something else.
    """
    entries = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if DESCRIPTION in entries:
        try:
            found = read_info(out)
        except DataError:
            if not rebuild:
                raise
            entries.remove(DESCRIPTION)  # it is damaged, and written again if everything else is of a build
        else:
            if found.recipe == info.recipe and found.name == NAME:
                if rebuild:
                    return None
                for split in found.splits:
                    check_shards(out, found, split)
                return found
    own = {ROWS + ".partial", ROWS, INDEX, ATTRIBUTION}
    for entry in entries:
        begun = entry in own or (
            entry.startswith(("train-", "val-", "val_style-")) and entry.endswith((".tar", ".tar.partial"))
        )
        if not begun or DESCRIPTION in entries:
            raise DataError(
                f"{out} holds {entry!r}: expected a new or empty folder, or an earlier build of the same scenes; choose "
                "another --out, or empty this folder yourself"
            )
    return None


def _command(bank: Path, scenes: Scenes, out: Path, shard_size: int) -> str:
    words = [
        "python",
        "datasets/emoji_shards.py",
        "--bank",
        str(bank.absolute()),
        "--out",
        str(out.absolute()),
        "--shard-size",
        str(shard_size),
    ]
    for field in dataclasses.fields(Scenes):
        if getattr(scenes, field.name) != field.default:
            words += ["--" + field.name.replace("_", "-"), str(getattr(scenes, field.name))]
    return shlex.join(words)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line, with argparse because tyro is missing too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=Path, required=True, help="file that datasets/emoji.py made")
    parser.add_argument("--out", type=Path, required=True, help="folder for the data set, new or empty")
    parser.add_argument("--shard-size", type=int, default=500, help="samples in a shard (default 500)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="processes that draw")
    parser.add_argument("--rebuild", action="store_true", help="write a complete data set with these settings again")
    for field in dataclasses.fields(Scenes):
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, type=type(field.default), default=field.default, help=f"default {field.default}")
    settings = vars(parser.parse_args(arguments))
    bank, out, shard_size, processes, rebuild = (
        settings.pop(name) for name in ("bank", "out", "shard_size", "processes", "rebuild")
    )
    for name, value in (("shard-size", shard_size), ("processes", processes)):
        if value < 1:
            parser.error(f"--{name} = {value}: expected at least 1")
    try:
        write_emoji(bank, Scenes(**settings), out, shard_size=shard_size, processes=processes, rebuild=rebuild)
    except ValueError as error:  # DataError among them
        parser.error(str(error))


if __name__ == "__main__":
    main()
