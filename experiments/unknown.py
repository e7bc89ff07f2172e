"""How well does the nearest cosine tell classes that were never trained from those that were, beside a dense softmax?

    python experiments/unknown.py --preset glyphs --data.path data/glyphs --data.num-classes 40 --trainer.steps 600

Each head is trained on the N most frequent classes of a data set (`data.num_classes`), while the pixels of the others are ignored
(`data.other_classes ignore`), so that neither head has ever seen them. On split val every pixel then has a familiarity: the
cosine of the nearest class, or the largest softmax probability of the dense head (https://arxiv.org/abs/1610.02136). The AUROC says
how often a pixel of a trained class is more familiar than one of the others. Results go to experiments/results/unknown.csv.

Expected: experiments/results/unknown.csv and experiments/LOG.md.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.config import Config
from kiloseg.inference.evaluation import evaluate
from kiloseg.inference.loading import load
from kiloseg.overrides import head_overrides, override
from kiloseg.presets import PRESETS
from kiloseg.training.loop import train
from kiloseg.tuning.result_tables import append_row, require_path

COLUMNS = ("data", "head", "trained", "absent", "seed", "steps", "miou", "absent_auroc")


@dataclass(frozen=True, kw_only=True)
class Arguments(cli.Preset):
    """Trains each head on some classes and measures how it sees the others."""

    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=lambda: PRESETS["glyphs"].config)
    """The settings that all runs share."""
    heads: tuple[str, ...] = ("embedding:all", "embedding:random", "dense")
    """The heads, as HEAD or HEAD:NEGATIVES."""
    seeds: tuple[int, ...] = (0,)
    """The seeds; each gets its own run."""
    results: Path = Path(__file__).resolve().parent / "results" / "unknown.csv"
    """The file of the table."""


def main(arguments: Arguments) -> None:
    """Adds a row for every seed and head."""
    path = require_path(arguments.run.data)
    if arguments.run.data.num_classes is None:
        raise ValueError(
            "--data.num-classes is missing: give the number of classes to train, fewer than the data set has"
        )
    for seed in arguments.seeds:
        for head in arguments.heads:
            with tempfile.TemporaryDirectory() as folder:
                settings = head_overrides(head) | {
                    "data.other_classes": "ignore",
                    "trainer.output": folder,
                    "trainer.seed": seed,
                    "trainer.validate_every": 0,
                }
                last = train(override(arguments.run, settings), lambda report: None)
                assert last.checkpoint is not None
                evaluation = evaluate(load(last.checkpoint), path, by_name=True)
            metrics = evaluation.metrics
            row = {
                "data": metrics["data"],
                "head": head,
                "trained": metrics["classes"],
                "absent": len(metrics["absent"]),
                "seed": seed,
                "steps": arguments.run.trainer.steps,
                "miou": metrics["miou"],
                "absent_auroc": metrics["absent_auroc"],
            }
            append_row(arguments.results, COLUMNS, row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
