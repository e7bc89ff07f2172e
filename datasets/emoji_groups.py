"""Writes emoji's own groups, category and subcategory, as a table that `kiloseg classes SOURCE group table` reads.

    python datasets/emoji_groups.py --out runs/emoji/groups.csv
    kiloseg classes runs/train group table runs/emoji/groups.csv --out runs/grouped

The classes come from the bank that datasets/emoji.py makes.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from common.command_line import run
from kiloseg.storage.atomic import write_whole
from kiloseg.storage.errors import DataError
from synthetic.emoji_bank import read_bank


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Writes the groups of the emoji data set."""

    out: Path
    """The csv file to write: class, category, subcategory."""
    bank: Path = Path(__file__).parents[1] / "runs" / "emoji" / "bank-2.tar"
    """The bank of datasets/emoji.py."""
    overwrite: bool = False
    """Whether to replace an existing file."""


def main(arguments: Arguments) -> None:
    """Writes the table.

    Raises:
        DataError: The file exists, or there is no bank.
    """
    if arguments.out.exists() and not arguments.overwrite:
        raise DataError(f"{arguments.out} exists; give --overwrite, or another --out")
    bank, _ = read_bank(arguments.bank)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(("class", "category", "subcategory"))
    writer.writerows((one.name, one.category, one.subcategory) for one in bank.classes)
    write_whole(arguments.out, text.getvalue().encode())
    print(
        f"{arguments.out}: {len(bank.classes):,} classes in {len({one.subcategory for one in bank.classes})} subcategories"
    )


if __name__ == "__main__":
    run(main, Arguments)
