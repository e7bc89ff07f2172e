"""Do cheaper losses pay at a thousand classes? mIoU, speed and memory of each way to sample, against the exact softmax.

    python datasets/glyphs.py --out runs/data/glyphs-1000 --num-classes 1000
    python experiments/sample_negatives.py                                   # all arms, about a quarter of an hour each
    python experiments/sample_negatives.py --arms all random:255 --data DIR

Question: the exact softmax over C classes is the yardstick. Which of these gives up less mIoU than time: negatives shared by
a batch ("random"), with the correction of sampled softmax ("log_q"), the paper's nearest ones, or every fourth pixel only?
Data: glyphs with 1,000 classes, the network of tune_embed_dim.py, equal steps, batches, seeds and learning rates.
Results: experiments/LOG.md. Each arm is a row of runs/sample_negatives/results.csv.
"""

from __future__ import annotations

import csv
import time
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from kiloseg.config import Config, NegativesKind, override
from kiloseg.data.shards import read_info
from kiloseg.presets import GLYPHS
from kiloseg.train import train


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare ways to sample negatives and pixels."""

    arms: tuple[str, ...] = ("all", "all:every=4", "nearest:8", "random:63", "random:255", "random:255:log_q")
    """KIND[:COUNT][:log_q][:every=N], KIND of all, nearest, random, mixed."""
    data: Path = Path("runs/data/glyphs-1000")
    """Folder of the data set."""
    steps: int = 1000
    """Steps of each arm."""
    seed: int = 0
    threads: int = 1
    """Threads of torch."""
    runs: Path = Path("runs")
    """Where results are written."""


def overrides(arm: str) -> dict[str, Any]:
    """Settings of an arm, by dotted name.

    Raises:
        SystemExit: a word that means nothing.
    """
    kind, *words = arm.split(":")
    kinds = typing.get_args(NegativesKind)
    if kind not in kinds:
        raise SystemExit(f"--arms {arm}: expected one of {', '.join(kinds)} first")
    settings: dict[str, Any] = {"loss.negatives.kind": kind}
    for word in words:
        if word.isdigit():
            settings["loss.negatives.count"] = int(word)
        elif word == "log_q":
            settings["loss.negatives.log_q"] = True
        elif word.startswith("every=") and word.removeprefix("every=").isdigit():
            settings["loss.sample_every"] = int(word.removeprefix("every="))
        else:
            raise SystemExit(f"--arms {arm}: {word!r} is neither a count nor log_q nor every=N")
    return settings


def main(arguments: Arguments) -> None:
    """Trains every arm and prints a line for each."""
    torch.set_num_threads(arguments.threads)
    arms = {arm: overrides(arm) for arm in arguments.arms}
    runs = arguments.runs.resolve()
    num_classes = read_info(arguments.data).num_classes
    base: Config = override(
        GLYPHS,
        {
            "data.path": str(arguments.data.resolve()),
            "data.num_classes": num_classes,
            "trainer.steps": arguments.steps,
            "trainer.validate_every": 0,
            "trainer.seed": arguments.seed,
        },
    )
    results = runs / "sample_negatives" / "results.csv"
    results.parent.mkdir(parents=True, exist_ok=True)
    columns = [
        "arm",
        "classes",
        "steps",
        "seed",
        "miou",
        "pixel_accuracy",
        "loss",
        "images_per_s",
        "peak_memory_gib",
        "s",
    ]
    for arm, settings in arms.items():
        output = results.parent / f"{arm.replace(':', '-')}-{num_classes}-{arguments.seed}"
        begin = time.perf_counter()
        last = train(override(base, {**settings, "trainer.output": str(output)}), report=lambda _: None)
        row = [arm, num_classes, arguments.steps, arguments.seed]
        row += [last["val/miou"], last["val/pixel_accuracy"], last["train/loss"], last["train/images_per_s"]]
        row += [last["peak_memory_gib"], time.perf_counter() - begin]
        row = [round(value, 4) if isinstance(value, float) else value for value in row]
        fresh = not results.exists()
        with results.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(columns)
            writer.writerow(row)
        print("  ".join(f"{name} {value}" for name, value in zip(columns, row, strict=True)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
