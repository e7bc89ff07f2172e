"""Prints the best trials of a finished search from its table, within an amount of memory."""

from __future__ import annotations

import io
import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from kiloseg.config import Config
from kiloseg.overrides import flatten
from kiloseg.storage.filesystems import inside, open_folder
from kiloseg.tuning.identity import newest_with

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Print the best trials of a search."""

    study: Annotated[str, tyro.conf.Positional] = "tune_embed_dim"
    """The name of a study, of which the newest is taken, or a study's id."""
    under: str | None = None
    """The most memory that a trial's training and validation may have needed, such as 12GiB. None: any."""
    top: int = 3
    """How many trials to print, 1 or more."""
    runs: str = "runs"
    """Folder of results, or its URL."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top {self.top}: expected 1 or more")


def main(arguments: Arguments) -> None:
    """Prints a line for each trial with its numbers, and below it the flags that repeat it.

    Raises:
        ValueError: there is no such study with a table, or no trial stayed within the memory.
    """
    from kiloseg.memory import parse_gib  # imports torch

    within_gib = math.inf if arguments.under is None else parse_gib(arguments.under, "--under")
    study, table = read_study(arguments.study, arguments.runs)
    table = table[table["val/miou"].notna()]
    needed_gib = table[["peak_memory_gib", "val/peak_memory_gib"]].max(axis="columns")
    fitting = table[needed_gib <= within_gib]
    if not len(fitting):
        raise ValueError(
            f"study {study} has no trial"
            + (
                f" within {arguments.under}; the smallest needed {needed_gib.min():.3f} GiB"
                if len(table)
                else " with a validation"
            )
        )
    print(f"study {study}")
    settings = flatten(Config())
    for row in fitting.sort_values("val/miou", ascending=False).head(arguments.top).to_dict("records"):
        print(
            f"\ntrial {row['trial']}: val/miou {row['val/miou']:.4f}, training {row['peak_memory_gib']:.3f} GiB, "
            f"validation {row['val/peak_memory_gib']:.3f} GiB, {row['outcome']} at step {row['step']}"
        )
        chosen = {str(name): value for name, value in row.items() if name in settings}
        flags = [word for name, value in chosen.items() for word in _flag(name, value)]
        print(f"    {shlex.join(flags)}")


def read_study(study: str, runs: str) -> tuple[str, pandas.DataFrame]:
    """Returns the id and the table of trials of the newest study of a name, or of the study with an id.

    Raises:
        ValueError: there is no such study with a table.
    """
    import pandas

    storage = inside(runs, "studies")
    found = newest_with(storage, study, "trials.csv")
    if found is None:
        raise ValueError(
            f"no finished study {study!r} in {open_folder(storage).name}; give its name or id, and --runs if results are elsewhere"
        )
    study_id, place = found
    return study_id, pandas.read_csv(io.BytesIO(place.read("trials.csv")), dtype={"trial": str})


def _flag(name: str, value: object) -> list[str]:
    """Returns a setting's flag and value, or nothing for one that the trial did not choose."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    whole = isinstance(value, float) and value.is_integer() and isinstance(flatten(Config())[name], int)
    return [f"--{name.replace('_', '-')}", str(int(value) if whole and isinstance(value, float) else value)]
