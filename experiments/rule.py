"""How should the embedding dimension D and the number of negatives K grow with the number of classes C?

    python experiments/rule.py --data.path DIR
    python experiments/rule.py --data.path DIR --classes 16 64 256 1024 --trainer.steps 4000 --seeds 0 1 2
    python experiments/rule.py --data.path DIR --model.weights CHECKPOINT --trainer.steps 1000

A run for every C and D with the exact softmax, and for every C and K, random and nearest, with the dimension of the preset,
all of equally many steps. Runs that have a row in the results are not run again, so a grid may grow over many sittings.

With a checkpoint, such as one of experiments/long_study.py, only a new last layer and a new class table are trained, on what
its network makes of a fixed set of crops. A step then costs the loss alone, so that a core compares tables over features that are
worth something in minutes. It does not show what D and K do to the features themselves.

What is printed at the end is, for every C, the smallest D and K whose mIoU is within 2 % of the best, and how they grow:
sizes as a power of C, fitted to the smallest size of every C and seed, with the 95 % interval of the power. A figure with
all curves goes beside the table.

Source: "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU", https://arxiv.org/abs/2012.07489, which takes D = 6 or 12
and K = 6 to 8 and says of neither how it should grow.

Expected: experiments/results/rule.csv and experiments/LOG.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from scipy import optimize, stats
from torch import Tensor, nn

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli, plotting
from kiloseg.config import Config
from kiloseg.data.classes import count_classes
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import TrainBatches, validation_batches
from kiloseg.metrics import IoU
from kiloseg.models.heads import head_class
from kiloseg.ops.cpu import MAX_NEAREST
from kiloseg.overrides import override
from kiloseg.presets import PRESETS
from kiloseg.training.evaluation import segmenter_of
from kiloseg.training.initial import WORDS, initial_state
from kiloseg.training.loop import train
from kiloseg.training.optimizer import learning_rate_factor, set_learning_rate
from kiloseg.training.step import training_step
from kiloseg.tuning.result_tables import append_row, read_rows, require_path

COLUMNS = (
    *("num_classes", "embed_dim", "negatives", "count", "seed", "steps", "batch", "crop", "start"),
    *("miou", "pixel_accuracy"),
)
KEY = COLUMNS[:9]
ALIKE = ("steps", "batch", "crop", "start")
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
    """The numbers of negatives, random and nearest, as far as there are classes; nearest ones at most 64."""
    seeds: tuple[int, ...] = (0,)
    """The seeds; each gets its own run."""
    crops: int = 8192
    """The number of crops whose features are kept if runs start from a checkpoint: 82 KB each for crops of 64 px."""
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
                    if count < num_classes - 1 and (kind == "random" or count <= MAX_NEAREST):
                        negatives = {"loss.negatives.kind": kind, "loss.negatives.count": count}
                        yield override(arguments.run, {**shared, **negatives})


def row_of(config: Config) -> dict[str, Any]:
    """Returns the columns that distinguish a run from others."""
    kind, num_classes = config.loss.negatives.kind, config.data.num_classes
    return {
        "num_classes": num_classes,
        "embed_dim": config.model.embed_dim,
        "negatives": kind,
        "count": num_classes - 1 if kind == "all" and num_classes else config.loss.negatives.count,
        "seed": config.trainer.seed,
        "steps": config.trainer.steps,
        "batch": config.trainer.batch_size,
        "crop": config.data.crop,
        "start": Path(config.model.weights).name,
    }


class LastLayer(nn.Module):
    """The last layer of a network and its head, which are trained alone."""

    def __init__(self, config: Config, channels: int, num_classes: int) -> None:
        super().__init__()
        self.head = head_class(config.model.head)(config.model, config.loss, num_classes)
        self.layer = nn.Conv2d(channels, self.head.num_outputs(config.model, num_classes), 1)

    def forward(self, features: Tensor) -> Tensor:
        """Returns what the head's loss and prediction take."""
        outputs: Tensor = self.head(self.layer(features.float()))
        return outputs


class Features:
    """What a trained network makes of crops and of validation images, before its last layer; for one number of classes.

    Args:
        config: a run, whose `model.weights` names the network; its crops are drawn by its data settings and seed.
        crops: the number of crops.
    """

    def __init__(self, config: Config, crops: int) -> None:
        info, self.data, self.seed = read_info(config.data.path), config.data, config.trainer.seed
        self.num_classes = count_classes(config.data, info)
        state = initial_state(config.model.weights)
        if state is None:
            raise ValueError(
                f"--model.weights {config.model.weights}: expected a checkpoint of kiloseg, or none at all"
            )
        self.segmenter = segmenter_of(state)[0]
        self.segmenter.network.segmentation_head = nn.Identity()
        size = config.trainer.batch_size
        batches = TrainBatches(config.data, info, batch_size=size, seed=self.seed).from_step(0)
        made = [self._made(*next(batches)) for _ in range(max(crops // size, 1))]
        self.crops = torch.cat([features for features, _ in made])
        self.labels = torch.cat([labels for _, labels in made])
        self.validation = [self._made(*batch) for batch in validation_batches(config.data, info)]

    @torch.no_grad()
    def _made(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features and labels in half of their bytes or less, since all of them are kept."""
        return self.segmenter.network_outputs(images).bfloat16(), labels.int()

    def train(self, config: Config) -> dict[str, float]:
        """Trains a last layer and a head, and returns the metrics of the validation images."""
        steps, size = config.trainer.steps, config.trainer.batch_size
        torch.manual_seed(config.trainer.seed)
        model = LastLayer(config, self.crops.shape[1], self.num_classes)
        groups = [{"params": list(model.parameters()), "peak_lr": config.optimizer.lr}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        for step in range(steps):
            if step * size % len(self.crops) < size:
                order = torch.randperm(len(self.crops))
            chosen = order[step * size % len(order) :][:size]
            set_learning_rate(optimizer, learning_rate_factor(step, steps, config.optimizer))
            training_step(config, model, optimizer, self.crops[chosen], self.labels[chosen].long())
        counts = IoU(self.num_classes)
        with torch.no_grad():
            for features, labels in self.validation:
                predicted = model.head.predict(model(features), (labels.shape[1], labels.shape[2]))
                counts.update(predicted, labels.long())
        return counts.compute()


def main(arguments: Arguments) -> None:
    """Runs every cell that has no row yet."""
    require_path(arguments.run.data)
    done = {tuple(row[name] for name in KEY) for row in read_rows(arguments.results, COLUMNS)}
    features: Features | None = None
    for config in cells(arguments):
        row = row_of(config)
        if tuple(str(row[name]) for name in KEY) in done:
            continue
        if row["start"] not in WORDS:
            if features is None or (features.data, features.seed) != (config.data, config.trainer.seed):
                features = Features(config, arguments.crops)
            metrics = features.train(config)
        else:
            with tempfile.TemporaryDirectory() as folder:
                last = train(override(config, {"trainer.output": folder, "trainer.progress": False}), lambda _: None)
            metrics = {name: last[f"val/{name}"] for name in ("miou", "pixel_accuracy")}
        row |= {name: f"{metrics[name]:.6g}" for name in ("miou", "pixel_accuracy")}
        append_row(arguments.results, COLUMNS, row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    found = curves_of(read_rows(arguments.results, COLUMNS), row_of(arguments.run))
    for line in (*good_enough(found), *growth(found)):
        print(line)
    draw(found, arguments.results.with_suffix(".png"))


Curves = dict[tuple[str, int], dict[int, dict[int, float]]]
"""The mIoU by method ("D, all", "K, random" or "K, nearest"), number of classes, seed, and D or K."""


def curves_of(rows: Sequence[Mapping[str, str]], run: Mapping[str, Any]) -> Curves:
    """Groups the rows of the table that are of the same steps, batch, crop and start as a run, and for K of its D."""
    found: Curves = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        same = {*ALIKE} if row["negatives"] == "all" else {*ALIKE, "embed_dim"}
        if any(row[name] != str(run[name]) for name in same):
            continue
        by = "D, all" if row["negatives"] == "all" else f"K, {row['negatives']}"
        size = int(row["embed_dim"] if row["negatives"] == "all" else row["count"])
        found[by, int(row["num_classes"])][int(row["seed"])][size] = float(row["miou"])
    return found


def good_enough(curves: Curves) -> list[str]:
    """Returns a line for each method and class count: the smallest D or K whose mean mIoU over seeds is within 2 % of the best."""
    lines = []
    for (by, num_classes), seeds in sorted(curves.items()):
        means = mean_curve(seeds)
        best = max(means.values())
        smallest = min(size for size, mean in means.items() if mean >= NEAR * best)
        lines.append(
            f"{num_classes:,} classes, {by}: {smallest} of {', '.join(map(str, means))} (best mIoU {best:.4f})"
        )
    return lines


def mean_curve(seeds: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    """Returns the mean mIoU over seeds by D or K, in order."""
    sizes = sorted({size for curve in seeds.values() for size in curve})
    return {size: float(np.mean([curve[size] for curve in seeds.values() if size in curve])) for size in sizes}


def smallest_size(curve: Mapping[int, float]) -> float:
    """Returns the size from which on a curve is within 2 % of its best, between two sizes by interpolation over log(size).

    The curve is first made to rise everywhere, by isotonic regression, because runs scatter by more than 2 %.
    """
    sizes = np.array(sorted(curve))
    rising = optimize.isotonic_regression([curve[size] for size in sizes]).x
    enough = NEAR * rising[-1]
    place = int(np.argmax(rising >= enough))
    if place == 0:
        return float(sizes[0])
    below, above = rising[place - 1], rising[place]
    share = (enough - below) / (above - below)
    return float(np.exp((1 - share) * np.log(sizes[place - 1]) + share * np.log(sizes[place])))


def growth(curves: Curves) -> list[str]:
    """Returns a line for each method with three class counts or more: its smallest sizes as a power of C."""
    lines = []
    for by in sorted({by for by, _ in curves}):
        points = [
            (num_classes, smallest_size(curve))
            for (method, num_classes), seeds in curves.items()
            if method == by
            for curve in seeds.values()
        ]
        if len({num_classes for num_classes, _ in points}) < 3:
            continue
        x, y = np.log(np.array(points)).T
        fit = stats.linregress(x, y)
        reach = stats.t.ppf(0.975, len(x) - 2) * fit.stderr
        lines.append(
            f"{by}: {np.exp(fit.intercept):.3g} * C ** {fit.slope:.2f} "
            f"(95 % interval of the power {fit.slope - reach:.2f} to {fit.slope + reach:.2f}, {len(x)} curves)"
        )
    return lines


def draw(found: Curves, path: Path) -> None:
    """Draws the share of the best mIoU of its class count and method that every D and K reaches."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    methods = sorted({by for by, _ in found})
    for axes, by in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
        for index, num_classes in enumerate(sorted(C for method, C in found if method == by)):
            means = mean_curve(found[by, num_classes])
            best = max(means.values())
            look = {"color": plotting.COLORS[index], "marker": plotting.MARKERS[index]}
            shares = [mean / best for mean in means.values()]
            axes.plot(list(means), shares, label=f"{num_classes:,} classes, {best:.3f}", **look)
        axes.axhline(NEAR, color="gray", linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set(
            xlabel="embedding dimension D" if by.startswith("D") else f"{by[3:]} negatives K",
            ylabel="mIoU, share of the best",
            ylim=(0, 1.05),
        )
        axes.grid(alpha=0.25)
        axes.legend(title="and their best mIoU", frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
