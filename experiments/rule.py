"""How should the embedding dimension D and the number of negatives K grow with the number of classes C?

    python experiments/rule.py --data.path DIR
    python experiments/rule.py --data.path DIR --classes 16 64 256 1024 --dims 4 8 16 32 64 128 256 --steps 4000 --seeds 0 1 2

A run for every C and D with the exact softmax, and for every C and K, random and nearest, with the dimension of the preset,
all of equally many steps. Runs that have a row in the results are not run again, so a grid may grow over many sittings.
What is printed at the end is, for every C, the smallest D and K whose mIoU is within 2 % of the best.

Source: "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU", https://arxiv.org/abs/2012.07489, which takes D = 6 or 12
and K = 6 to 8 and says of neither how it should grow.

Expected: experiments/results/rule.csv and experiments/LOG.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.config import Config
from kiloseg.overrides import override
from kiloseg.presets import PRESETS
from kiloseg.training.loop import train
from kiloseg.tuning.result_tables import append_row, read_rows, require_path

COLUMNS = ("num_classes", "embed_dim", "negatives", "count", "seed", "steps", "batch", "crop", "miou", "pixel_accuracy")
KEY = COLUMNS[:8]
NEAR = 0.98
"""The share of the best mIoU that counts as good enough."""


@dataclass(frozen=True, kw_only=True)
class Arguments(cli.Preset):
    """Trains a grid of embedding dimensions and numbers of negatives at several class counts."""

    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=lambda: PRESETS["emoji"].config)
    """The settings that all runs share; `trainer.steps` is the length of each."""
    classes: tuple[int, ...] = (16, 64, 256, 1024)
    """The class counts, including the background."""
    dims: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    """The embedding dimensions, with the exact softmax."""
    counts: tuple[int, ...] = (2, 8, 32, 128, 512)
    """The numbers of negatives, random and nearest; those that exceed a class count are left out."""
    seeds: tuple[int, ...] = (0,)
    """The seeds; each gets its own run."""
    results: Path = Path(__file__).resolve().parent / "results" / "rule.csv"
    """The file of the table."""


def cells(arguments: Arguments) -> Iterator[Config]:
    """Yields the run of every cell, all of one seed before those of the next."""
    for seed in arguments.seeds:
        for num_classes in arguments.classes:
            shared: dict[str, Any] = {"data.num_classes": num_classes, "trainer.seed": seed}
            for dim in arguments.dims:
                yield override(arguments.run, {**shared, "model.embed_dim": dim, "loss.negatives.kind": "all"})
            for kind in ("random", "nearest"):
                for count in arguments.counts:
                    if count < num_classes - 1:
                        negatives = {"loss.negatives.kind": kind, "loss.negatives.count": count}
                        yield override(arguments.run, {**shared, **negatives})


def row_of(config: Config) -> dict[str, Any]:
    """Returns the columns that distinguish a run from others."""
    kind = config.loss.negatives.kind
    return {
        "num_classes": config.data.num_classes,
        "embed_dim": config.model.embed_dim,
        "negatives": kind,
        "count": config.data.num_classes - 1
        if kind == "all" and config.data.num_classes
        else config.loss.negatives.count,
        "seed": config.trainer.seed,
        "steps": config.trainer.steps,
        "batch": config.trainer.batch_size,
        "crop": config.data.crop,
    }


def main(arguments: Arguments) -> None:
    """Runs every cell that has no row yet, and prints what is good enough."""
    require_path(arguments.run.data)
    rows = read_rows(arguments.results)
    done = {tuple(row[name] for name in KEY) for row in rows}
    for config in cells(arguments):
        row = row_of(config)
        if tuple(str(row[name]) for name in KEY) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            last = train(override(config, {"trainer.output": folder, "trainer.progress": False}), lambda report: None)
        row |= {"miou": f"{last['val/miou']:.6g}", "pixel_accuracy": f"{last['val/pixel_accuracy']:.6g}"}
        append_row(arguments.results, COLUMNS, row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    for line in good_enough(read_rows(arguments.results)):
        print(line)


def good_enough(rows: Sequence[dict[str, str]]) -> list[str]:
    """Returns a line for each class count and method: the smallest D or K whose mean mIoU over seeds is within 2 % of the best."""
    found: dict[tuple[int, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by = "D, all" if row["negatives"] == "all" else f"K, {row['negatives']}"
        size = int(row["embed_dim"] if row["negatives"] == "all" else row["count"])
        found[int(row["num_classes"]), by][size].append(float(row["miou"]))
    lines = []
    for (num_classes, by), sizes in sorted(found.items()):
        means = {size: float(np.mean(mious)) for size, mious in sizes.items()}
        best = max(means.values())
        smallest = min(size for size, mean in means.items() if mean >= NEAR * best)
        lines.append(
            f"{num_classes:,} classes, {by}: {smallest} of {', '.join(map(str, sorted(means)))} (best mIoU {best:.4f})"
        )
    return lines


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
