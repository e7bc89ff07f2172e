"""mIoU and peak memory against the number of classes: the curve that the method is for.

Question: as classes grow, how does each head do when all get the same memory, and when all get the same batch?

Method: a Ray trial per head, class count and seed, on the N most frequent classes of one data set. With --budget every run gets
the largest batch that the planner says fits that memory; a head that cannot fit even one image is a row with oom = 1. With
--batch all runs get that batch. Steps are equal in all runs. The learning rate belongs to the batch of the run that is
given (--trainer.batch-size) and is scaled to another batch by its square root for adamw
(https://arxiv.org/abs/2205.10287) and in proportion for sgd (https://arxiv.org/abs/1706.02677). "official" is the formula of
the paper's own code in the same loop, with as many negatives as embedding:nearest.

    python experiments/scale_classes.py --data.path DIR --classes 16 64 256 1024 1536 --budget 4GiB
    python experiments/scale_classes.py --data.path DIR --classes 64 1024 --heads dense embedding:all --batch 16
    python experiments/scale_classes.py --preset emoji-gpu --data.path DIR --budget 24GiB
    python experiments/scale_classes.py --data.path DIR ... --resume      the same flags: go on with the newest study

What comes out: a run per cell in MLflow and one per head, whose metrics have the class count as their step
(miou_vs_classes, peak_memory_gib_vs_classes, images_per_s_vs_classes); the table as CSV and Parquet and three figures as PNG
and SVG, in the study's folder and at its run.

Source: Figure 1 and Table 4 of "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU",
https://arxiv.org/abs/2012.07489, which reports three times the mIoU of the dense head at 1,284 classes on one GPU.

Expected: experiments/results/scale_classes.csv and experiments/LOG.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas
import torch
import tyro
from matplotlib.figure import Figure

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.memory import largest_batch, parse_gib
from kiloseg.overrides import flatten, head_name, head_negatives, head_overrides, override
from kiloseg.plotting import spread
from kiloseg.presets import PRESETS
from kiloseg.tracking.delivery import RunWriter
from kiloseg.tracking.runs import CURVE_TAG
from kiloseg.training.precision import autocast_of
from kiloseg.tuning.grid import run_grid
from kiloseg.tuning.paths import absolute
from kiloseg.tuning.result_tables import in_order, log_figures, merge, read_table, require_path
from kiloseg.tuning.study import Study, StudyResult
from kiloseg.tuning.trial_row import TrialRow

COLUMNS = (
    "setting",
    "head",
    "num_classes",
    "seed",
    "batch",
    "steps",
    "miou",
    "peak_memory_gib",
    "images_per_s",
    "oom",
)
CELL = ["setting", "head", "num_classes", "seed"]
"""These columns distinguish a run from all others."""
CURVES = {"miou": "validation mIoU", "peak_memory_gib": "peak memory (GiB)", "images_per_s": "images / s"}
"""These values are drawn against the class count."""


@dataclass(frozen=True, kw_only=True)
class Arguments(cli.Preset):
    """Trains heads at several class counts and compares them."""

    study: Annotated[Study, tyro.conf.arg(name="")] = field(default_factory=lambda: Study(name="scale_classes"))
    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=lambda: PRESETS["emoji"].config)
    """The settings that all runs share."""
    classes: tuple[int, ...] = (16, 64, 256, 1024, 1536)
    """The class counts, including the background."""
    heads: tuple[str, ...] = ("dense", "embedding:all", "embedding:nearest", "embedding:random", "official")
    """The heads: dense, embedding:KIND with negatives of that kind, official, or prototype."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The seeds; each gets its own run."""
    budget: str = "4GiB"
    """The memory of a training step on one worker, without DDP's copy of the gradients; each run gets the largest batch within
    it."""
    batch: int | None = None
    """The images per step of every run, instead of a budget."""
    max_batch: int | None = None
    """With a budget, the most images per step of any run. None means that only the budget limits it."""
    random_count: int = 255
    """The negatives of embedding:random, or all other classes if there are fewer; the other kinds use those of the run."""
    results: Path | None = None
    """A CSV that this study's rows are added to, replacing rows of the same setting, head, class count and seed. Table, figures
    and curves then cover all its rows of this setting, so a curve may grow over several studies of equal budget or batch, steps
    and data."""

    def __post_init__(self) -> None:
        for name, values in (("classes", self.classes), ("heads", self.heads), ("seeds", self.seeds)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} {values}: expected at least one, each once")
        for name, value in (("batch", self.batch), ("max-batch", self.max_batch), ("random-count", self.random_count)):
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: expected at least 1")
        parse_gib(self.budget, "--budget")

    @property
    def setting(self) -> Literal["budget", "batch"]:
        """Returns what is equal in all runs."""
        return "budget" if self.batch is None else "batch"


def cells(arguments: Arguments, base: Config) -> Iterator[dict[str, Any]]:
    """Yields settings of each cell by dotted names, without its seed; `trainer.batch_size` is 0 if not even one image fits."""
    budget_gib = parse_gib(arguments.budget, "--budget")
    for head in arguments.heads:
        for num_classes in arguments.classes:
            settings = {**head_overrides(head), "data.num_classes": num_classes}
            count = head_negatives(base, head, num_classes)
            if settings.get("loss.negatives.kind") == "random":
                count = arguments.random_count
            settings["loss.negatives.count"] = min(count, num_classes - 1)
            batch = arguments.batch
            if batch is None:
                workers = arguments.study.workers
                batch = largest_batch(override(base, settings), budget_gib) * workers
                batch = min(batch, (arguments.max_batch or batch) // workers * workers)
            yield {**settings, "trainer.batch_size": batch, "optimizer.lr": scaled_lr(base, batch)}


def with_precision(base: Config, study: Study) -> Config:
    """Returns the run with the precision that "auto" selects where it trains, since memory depends on it.

    Raises:
        ValueError: It trains on GPUs that are not on this machine.
    """
    if base.trainer.precision != "auto":
        return base
    here = torch.cuda.is_available()
    if study.gpus_per_worker and not here:
        raise ValueError(
            "--trainer.precision auto: a budget is planned for one precision, and the GPUs are on other machines; use bf16, or "
            "fp32 where they do not support it"
        )
    on_gpu = here and study.gpus_per_worker != 0
    autocast = autocast_of("auto", torch.device("cuda" if on_gpu else "cpu"))
    return override(base, {"trainer.precision": "bf16" if autocast else "fp32"})


def scaled_lr(base: Config, batch: int) -> float:
    """Returns the learning rate of `base` for a different batch."""
    ratio = batch / base.trainer.batch_size
    return base.optimizer.lr * (math.sqrt(ratio) if base.optimizer.name == "adamw" else ratio)


def main(arguments: Arguments) -> None:
    """Plans, trains, and writes the results."""
    path = require_path(arguments.run.data)
    known = read_info(path).num_classes
    if max(arguments.classes) > known:
        raise ValueError(f"--classes {max(arguments.classes)}: {path} has only {known} classes")
    base = absolute(arguments.run, arguments.study.runs)
    if arguments.batch is None:
        base = with_precision(base, arguments.study)
    if arguments.results is not None:
        read_table(arguments.results, COLUMNS)  # checked now, before anything is computed
    planned = []
    for cell in cells(arguments, base):
        planned.append(cell)
        batch = f"{cell['trainer.batch_size']} images a step" if cell["trainer.batch_size"] else "not one image fits"
        print(f"{head_of(base, cell):20}{cell['data.num_classes']:>8,} classes: {batch}", flush=True)
    seeded = [{**cell, "trainer.seed": seed} for cell in planned for seed in arguments.seeds]
    fitting = [cell for cell in seeded if cell["trainer.batch_size"]]
    tags = {"setting": arguments.setting}
    with run_grid(arguments.study, base, fitting, script="experiments/scale_classes.py", tags=tags) as result:
        rows = [row_of(arguments, base, trial.overrides, trial) for trial in result.rows]
        for cell in seeded:
            if not cell["trainer.batch_size"]:
                rows.append(row_of(arguments, base, cell, None))
                record_no_room(result.run, arguments, base, cell)
        table = in_order(pandas.DataFrame(rows, columns=list(COLUMNS)), CELL, head=arguments.heads)
        write(table, arguments, result)
    report(table, result)


def head_of(base: Config, cell: Mapping[str, Any]) -> str:
    """Returns the name of a cell's head."""
    # A batch of 0 is not a valid setting of a run.
    return head_name(override(base, {name: cell[name] for name in cell if name.startswith(("model.", "loss."))}))


def row_of(arguments: Arguments, base: Config, cell: Mapping[str, Any], trial: TrialRow | None) -> dict[str, Any]:
    """Returns a row of the table; `trial` is None for a cell that had no room to run."""
    return {
        "setting": arguments.setting,
        "head": head_of(base, cell),
        "num_classes": cell["data.num_classes"],
        "seed": cell["trainer.seed"],
        "batch": cell["trainer.batch_size"],
        "steps": trial.step if trial else 0,
        "miou": trial.last_miou if trial else None,
        "peak_memory_gib": trial.peak_memory_gib if trial else None,
        "images_per_s": trial.images_per_s if trial else None,
        "oom": int(trial is None or trial.outcome == "oom"),
    }


def record_no_room(study: RunWriter, arguments: Arguments, base: Config, cell: Mapping[str, Any]) -> None:
    """Records a run in MLflow for a cell that was not started, since the plan of a single image exceeds the budget."""
    head = head_of(base, cell)
    run = study.delivery.trial(f"{head} {cell['data.num_classes']} {cell['trainer.seed']}")
    run.begin(flatten(base) | dict(cell), {"setting": arguments.setting, "head": head, "outcome": "oom"})
    run.log_metrics({"oom": 1}, step=0)
    run.end("FAILED")


def write(table: pandas.DataFrame, arguments: Arguments, result: StudyResult) -> None:
    """Writes table and figures to the study's folder and its run, a curve per head to MLflow, and the rows to --results."""
    lacking = table[table["miou"].isna() & (table["oom"] == 0)]
    if arguments.results is not None:
        table = add_to_results(table, arguments.results, arguments.heads)
        table = table[table["setting"] == arguments.setting].reset_index(drop=True)
    folder = result.folder
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "scale_classes.csv", index=False)
    table.to_parquet(folder / "scale_classes.parquet", index=False)
    for kind in ("csv", "parquet"):
        result.run.log_file(folder / f"scale_classes.{kind}")
    log_figures(figures(table, arguments), result)
    # Otherwise MLflow would show a point of fewer seeds beside that of all of them once --resume has run the others.
    whole = ~table.set_index(["head", "num_classes"]).index.isin(lacking.set_index(["head", "num_classes"]).index)
    means = table[whole].groupby(["head", "num_classes"], sort=False)[list(CURVES)].mean()
    for head in dict.fromkeys(table[whole]["head"]):
        curve = result.run.delivery.trial(head)
        curve.begin({}, {CURVE_TAG: head, "setting": arguments.setting, "head": head})
        for num_classes, values in means.loc[head].iterrows():
            curve.log_metrics({f"{name}_vs_classes": values[name] for name in CURVES}, step=int(num_classes))
        curve.end("FINISHED")


def add_to_results(table: pandas.DataFrame, path: Path, heads: Sequence[str]) -> pandas.DataFrame:
    """Adds the rows of runs that ended to --results and returns all its rows.

    A run that failed or was interrupted adds none, so earlier results are kept.
    """
    return merge(table[(table["oom"] == 1) | table["miou"].notna()], path, CELL, head=heads)


def figures(table: pandas.DataFrame, arguments: Arguments) -> dict[str, Figure]:
    """Returns each curve by file name."""
    equal = f"budget {arguments.budget}" if arguments.batch is None else f"batch {arguments.batch}"
    rows: list[dict[str, Any]] = [
        dict(zip(COLUMNS, row, strict=True)) for row in table[list(COLUMNS)].itertuples(index=False)
    ]
    return {
        f"{name}_vs_classes": spread(
            rows,
            x="num_classes",
            y=name,
            by="head",
            x_label="classes",
            y_label=label,
            title=f"{label} against classes, {equal}",
        )
        for name, label in CURVES.items()
    }


def report(table: pandas.DataFrame, result: StudyResult) -> None:
    """Prints means over seeds, head by class count, and where to find more."""
    for name, label in CURVES.items():
        print(f"\n{label}, mean over seeds")
        print(
            table.pivot_table(name, "head", "num_classes", sort=False, dropna=False).to_string(
                float_format="{:.4g}".format
            )
        )
    for trial in result.rows:
        if trial.error:
            print(f"\ntrial {trial.trial} ({trial.outcome}): {trial.error.strip().splitlines()[-1]}")
    print(f"\n{int(table['oom'].sum())} of {len(table)} runs out of memory; {result.seconds:.0f} s")
    print(f"table and figures: {result.location}")
    print(f"compare in MLflow: {result.run.tracker.ui_command()}")


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
