"""What is each head worth when all get the same memory and the same training time, and dense too has learned what it can?

    python datasets/emoji.py --out DIR --size 96 --train-samples 30000 --val-samples 1536 --val-style-samples 1536
    python experiments/long_study.py --data.path DIR --hours 6                      all cells, each for six hours
    python experiments/long_study.py --data.path DIR --hours 6 --classes 1024 --heads dense official --seeds 0 1 2

Each cell trains with the largest batch in the budget (at most --max-batch) until its hours are over; the learning rate falls
with the time that is gone. Time is that of training steps: processor time where the network trains on a CPU, so that other work
on the machine takes nothing from a run, and the clock's on a GPU. Validations along the way are not counted. A cell that was
broken off goes on from its newest checkpoint when the same command is given again, and one that has a row in the results is not
run again, so hours of many sittings add up.

Expected: experiments/results/long_study.csv and experiments/LOG.md.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.config import Config, Model
from kiloseg.data.classes import count_classes, record_classes
from kiloseg.data.description import DatasetInfo, read_info
from kiloseg.data.reading.loader import TrainBatches, validation_batches
from kiloseg.memory import PeakMemory, largest_batch, parse_gib
from kiloseg.models import Segmenter, build_segmenter
from kiloseg.overrides import flatten, head_negatives, head_overrides, override, with_sizes
from kiloseg.presets import PRESETS
from kiloseg.training.checkpoint import load_newest, save_checkpoint
from kiloseg.training.evaluation import evaluate
from kiloseg.training.initial import WORDS, initial_state, take_over
from kiloseg.training.optimizer import build_optimizer, set_learning_rate
from kiloseg.training.precision import autocast_of
from kiloseg.training.step import training_step
from kiloseg.tuning.result_tables import append_row, read_rows, require_path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
COLUMNS = (
    *(
        "setting",
        "head",
        "num_classes",
        "seed",
        "embed_dim",
        "negatives",
        "batch",
        "steps",
        "images_seen",
        "train_hours",
    ),
    *("miou", "miou_style", "miou_head", "miou_medium", "miou_tail", "peak_memory_gib", "machine", "network"),
)
KEY = (*COLUMNS[:4], "network")
"""The columns that name a cell: one with a row of as many hours is not run again."""
SAME_HOURS = 0.1
"""Rows whose training time differs by less than this part of the hours asked for are of as many hours: a run ends with a step."""
CURVE_COLUMNS = (
    *(*COLUMNS[:4], "budget_hours", *COLUMNS[7:15]),
    *("object_accuracy", "background_accuracy", "train_loss", "network"),
)
COUNTED_STEPS = 2
"""The number of steps whose live tensors are counted on a CPU: the second already holds the optimizer's state."""


@dataclass(frozen=True, kw_only=True)
class Arguments(cli.Preset):
    """Trains heads for equal hours in equal memory, and compares what they have learned."""

    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=lambda: PRESETS["emoji"].config)
    """The settings that all runs share; `trainer.steps` is not used."""
    classes: tuple[int, ...] = (64, 256, 1024, 1536)
    """The class counts, including the background."""
    heads: tuple[str, ...] = ("embedding:random", "dense", "official", "official:paper")
    """The heads: dense; embedding:KIND; prototype; official, the paper's loss with the embedding dimension of the run;
    official:paper, with the 12 dimensions and 7 negatives of the paper."""
    seeds: tuple[int, ...] = (0,)
    """The seeds; each gets its own run."""
    hours: float = 6.0
    """The training time of a run, in hours."""
    clock: Literal["auto", "processor", "wall"] = "auto"
    """The measure of time: processor time of this process, or wall time. auto means processor on a CPU and wall on a GPU."""
    budget: str = "0.5GiB"
    """The memory of a training step."""
    max_batch: int = 16
    """The largest batch, also where the budget has room for more: more images at once teach less in the same time."""
    random_count: int = 255
    """The number of negatives of embedding:random."""
    validations: int = 6
    """The number of validations in a run, the last at its end; each writes a checkpoint and a row of the curve."""
    machine: str = "two cores"
    """The machine it runs on, for the table."""
    folder: Path = ROOT / "runs" / "long_study"
    """The folder for checkpoints, with one folder per run."""
    results: Path = RESULTS / "long_study.csv"
    """The file of the table; curves go beside it, as NAME_curves.csv."""

    def __post_init__(self) -> None:
        for name, value in (("hours", self.hours), ("validations", self.validations)):
            if not value > 0:
                raise ValueError(f"--{name} {value}: expected more than 0")
        if self.max_batch < 2:
            raise ValueError(f"--max-batch {self.max_batch}: expected 2 or more images")
        parse_gib(self.budget, "--budget")


def cells(arguments: Arguments) -> Iterator[tuple[str, Config]]:
    """Yields head and run of every cell, those of one class count and seed one after another."""
    for num_classes, seed, head in itertools.product(arguments.classes, arguments.seeds, arguments.heads):
        name, _, variant = head.partition(":")
        paper = name == "official" and variant == "paper"
        short = name if name == "official" else head
        settings = head_overrides(short) | {
            "data.num_classes": num_classes,
            "trainer.seed": seed,
        }
        random = head == "embedding:random"
        count = arguments.random_count if random else head_negatives(arguments.run, short, num_classes)
        settings["loss.negatives.count"] = min(7 if paper else count, num_classes - 1)
        if paper:
            settings["model.embed_dim"] = 12
        config = with_sizes(override(arguments.run, settings), num_classes)
        device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
        room = largest_batch(config, parse_gib(arguments.budget, "--budget"), device=device)
        batch = min(room, arguments.max_batch)
        if batch < 2:  # batch statistics of one image are meaningless
            print(f"{head}, {num_classes} classes: fewer than 2 images fit into {arguments.budget}", flush=True)
            continue
        lr = config.optimizer.lr * math.sqrt(batch / config.trainer.batch_size)
        yield head, override(config, {"trainer.batch_size": batch, "optimizer.lr": lr})


def network_name(model: Model) -> str:
    """Returns what tables call a network: its architecture, the scale of its input, its dropout where that is set, and the file
    or folder of weights that it started from; the hours that those took are not in its row."""
    dropout = "" if model.decoder_dropout is None else f", dropout {model.decoder_dropout:g}"
    start = "" if model.weights in WORDS else f", from {Path(model.weights).name}"
    return f"{model.arch} x{model.input_scale}{dropout}{start}"


class TimedRun:
    """Trains a run that ends after its hours, and resumes from its newest checkpoint.

    Args:
        config: the settings of the run.
        hours: its training time; the learning rate peaks for the first twentieth and then falls to 0.
        processor: whether time is processor time instead of wall time.
        folder: the folder for its checkpoints.
    """

    def __init__(self, config: Config, *, hours: float, processor: bool, folder: Path) -> None:
        self.config, self.hours, self.folder = config, hours, folder
        self.now = time.process_time if processor else time.perf_counter
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.info: DatasetInfo = read_info(config.data.path)
        self.classes = record_classes(config.data)
        torch.manual_seed(config.trainer.seed)
        state = load_newest(folder) if folder.is_dir() else None
        initial = None if state is not None else initial_state(config.model.weights)
        random = override(config, {"model.weights": "none"}) if state is not None or initial is not None else config
        self.segmenter: Segmenter = build_segmenter(random, count_classes(config.data, self.info), self.device)
        if initial is not None:
            print(take_over(self.segmenter, initial, self.classes), flush=True)
        self.optimizer = build_optimizer(self.segmenter, config.optimizer)
        self.autocast = autocast_of(config.trainer.precision, self.device)
        self.peak = PeakMemory(self.device, self.segmenter, self.optimizer)
        self.step, self.seconds, self.earlier_peak, self.loss_sum, self.loss_steps = 0, 0.0, 0.0, 0.0, 0
        if state is not None:
            self.segmenter.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.earlier_peak = state["step"], state["seconds"], state["peak"]

    def train_until(self, hours: float) -> None:
        """Takes steps until this much time was spent on them, then writes a checkpoint."""
        config = self.config
        batches = TrainBatches(config.data, self.info, batch_size=config.trainer.batch_size, seed=config.trainer.seed)
        samples = batches.from_step(self.step)
        self.segmenter.train()
        counted = 0
        while self.seconds < hours * 3600:
            begin = self.now()
            batch = next(samples)
            torch.manual_seed(config.trainer.seed * 1_000_003 + self.step)
            set_learning_rate(self.optimizer, self._rate_factor())
            if counted < COUNTED_STEPS and self.device.type == "cpu":
                with self.peak.step(*batch):
                    loss = training_step(config, self.segmenter, self.optimizer, *batch, autocast=self.autocast)
            else:
                loss = training_step(config, self.segmenter, self.optimizer, *batch, autocast=self.autocast)
            counted += 1
            self.loss_sum += float(loss)
            self.loss_steps += 1
            self.step += 1
            self.seconds += self.now() - begin
        content = {
            "config": flatten(config),
            "num_classes": self.segmenter.num_classes,
            "classes": self.classes,
            "model": self.segmenter.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seconds": self.seconds,
            "peak": self.peak_gib,
        }
        save_checkpoint(self.folder, self.step, content, keep=1)

    @property
    def peak_gib(self) -> float:
        """Returns the peak over all its training steps, including those before a resumption."""
        return max(self.peak.gib, self.earlier_peak)

    def _rate_factor(self) -> float:
        optimizer = self.config.optimizer
        warmup = min((self.step + 1) / max(optimizer.warmup_steps, 1), 1.0)
        progress = min(self.seconds / (self.hours * 3600), 1.0)
        return warmup * max(1 - progress, 0.001) ** optimizer.poly_power

    def measure(self) -> dict[str, Any]:
        """Returns columns of the table and the curve that are known after training so far."""
        found: dict[str, Any] = {}
        for split, suffix in (("val", ""), ("val_style", "_style")):
            if split not in self.info.splits:
                continue
            counts = evaluate(
                self.segmenter, validation_batches(self.config.data, self.info, split=split), autocast=self.autocast
            )
            assert counts is not None, "it was not asked to stop"
            metrics = counts.compute()
            found[f"miou{suffix}"] = metrics["miou"]
            if split == "val":
                hits, _, labeled = counts.counts_3C.double().cpu().numpy()
                found["background_accuracy"] = hits[0] / labeled[0]
                found["object_accuracy"] = hits[1:].sum() / labeled[1:].sum()
                thirds = np.array_split(metrics["iou_per_class"].cpu().numpy()[1:], 3)  # in the order of frequency
                for name, third in zip(("head", "medium", "tail"), thirds, strict=True):
                    found[f"miou_{name}"] = np.nanmean(third)
        found |= {
            "steps": self.step,
            "images_seen": self.step * self.config.trainer.batch_size,
            "train_hours": self.seconds / 3600,
            "peak_memory_gib": self.peak_gib,
            "train_loss": self.loss_sum / max(self.loss_steps, 1),
        }
        self.loss_sum, self.loss_steps = 0.0, 0
        return found


def main(arguments: Arguments) -> None:
    """Runs every cell that has no row yet, and adds its row and curve to the tables."""
    require_path(arguments.run.data)
    on_cpu = not torch.cuda.is_available()
    processor = on_cpu if arguments.clock == "auto" else arguments.clock == "processor"
    curves = arguments.results.with_name(arguments.results.stem + "_curves.csv")
    read_rows(curves, CURVE_COLUMNS)  # refuses a file of other columns now, and not after the first hours
    done = {
        tuple(row[name] for name in KEY)
        for row in read_rows(arguments.results, COLUMNS)
        if abs(float(row["train_hours"]) - arguments.hours) < SAME_HOURS * arguments.hours
    }
    for head, config in cells(arguments):
        dim = config.model.embed_dim if config.model.head in ("embedding", "prototype") else ""
        kind, count = config.loss.negatives.kind, config.loss.negatives.count
        negatives = "" if dim == "" else kind if kind == "all" else f"{kind} {count}"
        key = {
            "setting": "memory+time",
            "head": head,
            "num_classes": config.data.num_classes,
            "seed": config.trainer.seed,
            "network": network_name(config.model),
        }
        if tuple(str(value) for value in key.values()) in done:
            continue
        words = (head, *(key[name] for name in ("num_classes", "seed", "network")), f"{arguments.hours:g}h")
        folder = arguments.folder / re.sub("[^a-z0-9.-]+", "-", "-".join(map(str, words)))
        run = TimedRun(config, hours=arguments.hours, processor=processor, folder=folder)
        known = key | {"embed_dim": dim, "negatives": negatives, "batch": config.trainer.batch_size}
        for number in range(1, arguments.validations + 1):
            hours = arguments.hours * number / arguments.validations
            if run.seconds >= hours * 3600 and number < arguments.validations:
                continue
            run.train_until(hours)
            known |= run.measure() | {"machine": arguments.machine, "budget_hours": arguments.hours}
            append_row(curves, CURVE_COLUMNS, known)
            print(", ".join(f"{name} {known[name]}" for name in CURVE_COLUMNS if name in known), flush=True)
        append_row(arguments.results, COLUMNS, known)


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
