"""One setting at a time: what each choice of the method is worth.

    python experiments/ablate.py --question logit --data.path data/emoji-96
    python experiments/ablate.py --question negatives --data.path data/emoji-96 --data.num-classes 256 --seeds 0 1 2

Questions, each a grid of runs on Ray that differ in that setting alone and are equal in data, steps, batch, learning rate and
seed:

    embed_dim     how many dimensions does an embedding need, 2 to 128?
    negatives     which classes should a pixel be compared with, and how many?
    logit         distances (the paper) or cosines?
    temperature   the factor on them, 5 to 80
    separation    does the regularizer help?
    normalize     unit vectors after upsampling (Figure 2 of the paper) or before (its code)?
    neighbors    the paper's loss as its code has it, whose search can take another class for a pixel's own, against ours

Arms whose number of negatives is more than the data set has other classes are left out, and named. What comes out: a run per arm
and seed in MLflow, a table and a figure at the study's run and in its folder.

Source: "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU", https://arxiv.org/abs/2012.07489, Tables 5 to 7, which
vary dimensions and neighbors.

Expected: experiments/LOG.md.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas
import tyro

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.config import Config
from kiloseg.data.classes import count_classes
from kiloseg.data.description import read_info
from kiloseg.overrides import head_overrides, override
from kiloseg.plotting import ranking
from kiloseg.presets import PRESETS
from kiloseg.tuning.grid import run_grid
from kiloseg.tuning.paths import absolute
from kiloseg.tuning.result_tables import in_order, log_figures, require_path
from kiloseg.tuning.study import Study, StudyResult

Question = Literal["embed_dim", "negatives", "logit", "temperature", "separation", "normalize", "neighbors"]


def _negatives(kind: str, count: int, **more: Any) -> dict[str, Any]:
    return {"loss.negatives.kind": kind, "loss.negatives.count": count} | more


ARMS: dict[Question, dict[str, dict[str, Any]]] = {
    "embed_dim": {f"{dim} dimensions": {"model.embed_dim": dim} for dim in (2, 4, 8, 16, 32, 64, 128)},
    "negatives": {
        "all": {"loss.negatives.kind": "all"},
        **{f"{kind} {count}": _negatives(kind, count) for kind in ("nearest", "mixed") for count in (2, 8, 32)},
        **{f"random {count}": _negatives("random", count) for count in (63, 255, 1023)},
    },
    "logit": {logit: {"loss.logit": logit} for logit in ("distance", "cosine")},
    "temperature": {f"{tau:g}": {"loss.temperature": tau} for tau in (5.0, 10.0, 20.0, 40.0, 80.0)},
    "separation": {"on": {"loss.separation_weight": 1.0}, "off": {"loss.separation_weight": 0.0}},
    "normalize": {"after upsampling": {}, "before as well": {"model.normalize_early": True}},
    "neighbors": {
        "as the code has it": head_overrides("official"),
        "ours (nearest, normalized after upsampling)": {"loss.negatives.kind": "nearest", "loss.logit": "distance"},
    },
}
"""The settings of each arm of a question, by dotted names."""


@dataclass(frozen=True, kw_only=True)
class Arguments(cli.Preset):
    """Varies one setting."""

    question: Question
    study: Annotated[Study, tyro.conf.arg(name="")] = field(default_factory=lambda: Study(name="ablate"))
    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=lambda: PRESETS["emoji"].config)
    """The settings that all runs share."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The seeds; each arm gets a run for each."""
    arms: tuple[str, ...] = ()
    """Only these arms of the question run, by the names in the table. None means all."""

    def __post_init__(self) -> None:
        unknown = set(self.arms) - ARMS[self.question].keys()
        if unknown:
            raise ValueError(
                f"--arms {', '.join(sorted(unknown))}: expected one or more of {', '.join(map(repr, ARMS[self.question]))}"
            )


def main(arguments: Arguments) -> None:
    """Runs all arms and prints how they rank."""
    info = read_info(require_path(arguments.run.data))
    num_classes = count_classes(arguments.run.data, info)
    base = absolute(override(arguments.run, {"data.num_classes": num_classes}), arguments.study.runs)
    chosen = {
        name: arm for name, arm in ARMS[arguments.question].items() if not arguments.arms or name in arguments.arms
    }
    arms = possible(chosen, num_classes)
    # Every point names its arm by its settings, which is how results find it again.
    points = [{**arm, "trainer.seed": seed} for arm in arms.values() for seed in arguments.seeds]
    tags = {"question": arguments.question}
    with run_grid(arguments.study, base, points, script="experiments/ablate.py", tags=tags) as result:
        table = table_of(arms, base, result)
        write(table, arguments, result, num_classes)
    means = table.groupby("arm", sort=False).mean(numeric_only=True).drop(columns="seed")
    print(f"\n{arguments.question}, {info.name}, {num_classes:,} classes, means over {len(arguments.seeds)} seeds\n")
    print(means.sort_values("miou", ascending=False).to_string(float_format="{:.4g}".format))
    print(f"\ntable and figure: {result.location}\ncompare in MLflow: {result.run.tracker.ui_command()}")


def possible(arms: Mapping[str, dict[str, Any]], num_classes: int) -> dict[str, dict[str, Any]]:
    """Returns the arms for which a data set has enough classes; prints the names of the others."""
    fitting = {name: arm for name, arm in arms.items() if arm.get("loss.negatives.count", 1) < num_classes}
    if len(fitting) < len(arms):
        print(f"left out, since there are {num_classes} classes: {', '.join(arms.keys() - fitting.keys())}", flush=True)
    return fitting


def table_of(arms: Mapping[str, dict[str, Any]], base: Config, result: StudyResult) -> pandas.DataFrame:
    """Returns a row per run: arm, seed and its result."""
    rows = []
    for trial in result.rows:
        settings = override(base, trial.overrides)
        arm = next(
            name
            for name, values in arms.items()
            if override(base, {**values, "trainer.seed": settings.trainer.seed}) == settings
        )
        rows.append(
            {
                "arm": arm,
                "seed": settings.trainer.seed,
                "steps": trial.step,
                "miou": trial.last_miou,
                "peak_memory_gib": trial.peak_memory_gib,
                "images_per_s": trial.images_per_s,
                "outcome": trial.outcome,
            }
        )
    return in_order(pandas.DataFrame(rows), ["arm", "seed"], arm=list(arms))


def write(table: pandas.DataFrame, arguments: Arguments, result: StudyResult, num_classes: int) -> None:
    """Writes table and figure to the study's folder and its run."""
    result.folder.mkdir(parents=True, exist_ok=True)
    file = result.folder / f"{arguments.question}.csv"
    table.to_csv(file, index=False, float_format="%.6g")
    result.run.log_file(file)
    figure = ranking(
        {str(arm): group["miou"].dropna().tolist() for arm, group in table.groupby("arm", sort=False)},
        label="validation mIoU",
        title=f"{arguments.question}, {num_classes:,} classes",
    )
    log_figures({arguments.question: figure}, result)


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
