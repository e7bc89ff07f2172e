"""Builds the emoji data set: 1,536 classes of real artwork by seven vendors before photographs.

    python datasets/emoji.py --out data/emoji

Class 0 is the background, and classes 1 to 1,536 are emoji, so a network has 1,537 classes to tell apart. `train` shows the
drawings of five vendors. `val` shows the same drawings in new scenes before other photographs. `val_style` shows two vendors that
`train` never shows, so it tests the meaning instead of pictures that were seen before. Class k is drawn in proportion to 1/k in
training, so `data.num_classes` = N keeps the N - 1 most frequent emoji and turns the others into background. `--recipe-version 1`
builds the first version, of three vendors, whose `val` shows a vendor that `train` never shows.

npm downloads the sprites, 160 MB, the first time. They become a bank of 30 MB, from which datasets/emoji_shards.py draws the same
data set on machines without npm, pyarrow and resvg.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.command_line import run
from emoji_shards import complete_index, coverage, write_attribution
from kiloseg.data.description import DatasetInfo
from kiloseg.data.index import class_samples, read_index
from kiloseg.data.writing.build import ShardTask, build, plan_shards
from kiloseg.data.writing.output import Output
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError
from synthetic import emoji_packages
from synthetic.emoji_bank import Bank, make_bank, read_bank, write_bank
from synthetic.emoji_photographs import PACKAGED, in_folder, packaged
from synthetic.emoji_scenes import Scenes, describe, make_scenes

WORK = Path(__file__).parents[1] / "runs" / "emoji"


@dataclass(frozen=True, kw_only=True)
class Arguments(Scenes, Output):
    """Builds the emoji data set: 1,536 emoji drawn by seven vendors, before photographs; five of them for training and
    validation, Fluent and OpenMoji for a validation of their own.

    Equal settings and an equal bank give an equal digest, whatever the number of processes.
    """

    bank: Path | None = None
    """The file with sprites and backgrounds, 20 to 30 MB. If it exists, nothing else is needed; otherwise it is made there. None
    means bank-2.tar in runs/emoji, or bank.tar for version 1."""
    tarballs: Path = WORK
    """The folder with the npm packages as `npm pack` writes them; missing packages are downloaded into it."""
    backgrounds: Path | None = None
    """The folder of photographs (jpg, png, webp) to draw on, besides the nine that scikit-learn and scikit-image ship. Every third
    of all photographs is kept for val. The text of a file ATTRIBUTION, COPYING, copyright or LICENSE in it becomes their
    credit."""

    def __post_init__(self) -> None:
        Scenes.__post_init__(self)
        Output.__post_init__(self)

    @property
    def bank_file(self) -> Path:
        """Returns where the bank is or will be."""
        return self.bank or WORK / ("bank.tar" if self.recipe_version == 1 else f"bank-{self.recipe_version}.tar")


def build_emoji(arguments: Arguments) -> DatasetInfo:
    """Builds the data set unless it already exists, and prints how often each validation split shows the rarest class.

    Raises:
        DataError: Sprites cannot be obtained, `bank` holds other photographs than requested, or as for `build`.
        ModuleNotFoundError: A package that ships photographs is missing.
    """
    if not arguments.bank_file.is_file():
        _make_bank(arguments)
    bank, digest = read_bank(arguments.bank_file)
    if arguments.backgrounds is not None:
        _check_backgrounds(arguments.bank_file, bank, arguments.backgrounds)
    info = describe(
        arguments, bank, digest=digest, shard_size=arguments.shard_size, command=arguments.command("datasets/emoji.py")
    )
    tasks = [
        task for split, count in arguments.samples.items() for task in plan_shards(split, count, arguments.shard_size)
    ]
    scenes = Scenes(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Scenes)})
    path = str(arguments.bank_file.absolute())
    complete_index(arguments.out)  # before `build` checks whether the data set is complete
    info = build(arguments, info, tasks, functools.partial(_samples, scenes=scenes, bank=path, digest=digest))
    write_attribution(arguments.out, bank, scenes)
    for split in arguments.recipe.validation_splits:
        samples = class_samples(read_index(arguments.out, split), info.num_classes)
        print(coverage(samples.tolist(), split, arguments.samples[split]))
    return info


def _samples(task: ShardTask, *, scenes: Scenes, bank: str, digest: str) -> Iterable[Sample]:
    return make_scenes(task.split, task.start, task.stop, scenes=scenes, bank=bank, digest=digest)


def _make_bank(arguments: Arguments) -> None:
    photographs = packaged()
    if arguments.backgrounds is not None:
        photographs += in_folder(arguments.backgrounds)
    recipe = arguments.recipe
    tarballs = emoji_packages.obtain(arguments.tarballs, (*recipe.pictures, *recipe.drawings))
    print(f"making {arguments.bank_file}", flush=True)
    bank = make_bank(tarballs, photographs, recipe.pictures, recipe.drawings)
    write_bank(arguments.bank_file, bank)
    merged = sum(len(one.twins) for one in bank.classes)
    print(f"{len(bank.classes)} classes of {len(bank.classes) + merged} emoji, {len(photographs)} photographs")


def _check_backgrounds(bank_path: Path, bank: Bank, folder: Path) -> None:
    """Raises DataError if the bank was made with other photographs than those of the folder."""
    added = [photograph.sha256 for photograph in bank.photographs[len(PACKAGED) :]]
    if added != [photograph.sha256 for photograph in in_folder(folder)]:
        raise DataError(
            f"{bank_path} was made with other photographs than those in {folder}; delete it, or name a new file with --bank, "
            "or omit --backgrounds"
        )


if __name__ == "__main__":
    run(build_emoji, Arguments)
