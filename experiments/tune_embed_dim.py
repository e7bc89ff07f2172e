"""Which embedding dimension, which negatives?

Question: how many dimensions does a pixel embedding need, and which classes should a pixel be compared with, to reach the
best mIoU for a given number of steps; and what does each choice cost in memory?

Method: Optuna (TPE) over model.embed_dim, loss.negatives.kind, loss.negatives.count where the kind has one (up to all other
classes, on a logarithmic scale), loss.temperature, loss.logit and optimizer.lr, and over whatever --search adds;
each trial is a Ray Train run; trials that fall behind are stopped by ASHA. The score is the validation mIoU, on glyphs
drawn in a cut of the font that training never sees.

Source: "Scaling Semantic Segmentation Beyond 1K Classes on a Single GPU", https://arxiv.org/abs/2012.07489, whose own
choices are dimension 12, 7 nearest negatives, temperature 20 and distance logits.

    python experiments/tune_embed_dim.py                          40 classes of glyphs, built first; some minutes on 2 cores
    python experiments/tune_embed_dim.py --data.path DIR --data.crop 512 --model.arch deeplabv3plus --num-trials 50
    python experiments/tune_embed_dim.py ... --search optimizer.weight_decay=log:1e-5:1e-1 model.head=embedding,dense
    python experiments/tune_embed_dim.py ... --tradeoff memory --budget 24GiB --best-under 12GiB
    python experiments/tune_embed_dim.py ... --confirm 3          train the best three again with three seeds each
    python experiments/tune_embed_dim.py ... --resume             the same flags: go on with the newest study
    python experiments/tune_embed_dim.py ... --resume --num-trials 60
    python experiments/tune_embed_dim.py ... --resume --trainer.steps 40000 --continue-best 5
    python experiments/tune_embed_dim.py ... --share mine         the same flags on several machines: one search

Expected: see experiments/LOG.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.config import Config, NegativesKind
from kiloseg.data.description import read_info
from kiloseg.overrides import override
from kiloseg.presets import GLYPHS, PRESETS
from kiloseg.storage.filesystems import open_folder
from kiloseg.tracking.model_names import split_name
from kiloseg.tuning.callbacks.settings_text import flags_text
from kiloseg.tuning.confirmation import confirmation_table
from kiloseg.tuning.embedding_space import KINDS, embedding_space, known_trials
from kiloseg.tuning.journal import dashboard_command
from kiloseg.tuning.paths import absolute
from kiloseg.tuning.ranking import best_row
from kiloseg.tuning.search import Search, search
from kiloseg.tuning.searcher import infeasible_trials
from kiloseg.tuning.space import parse_dimension
from kiloseg.tuning.study import StudyResult
from kiloseg.tuning.summary import PAGE, PARETO, PREDICTIONS, table, write_summary

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Arguments(cli.Preset):
    """Searches embedding dimension and negative sampling."""

    study: Annotated[Search, tyro.conf.arg(name="")] = field(default_factory=lambda: Search(name="tune_embed_dim"))
    preset: str = "glyphs"
    """The preset that supplies settings that are neither given nor searched; `experiments/train.py --list` prints all."""
    run: Annotated[Config, tyro.conf.arg(name="")] = GLYPHS
    """The settings that all trials share. Without --data.path, the glyphs data set is built and used."""
    glyph_classes: int = 40
    """The number of classes of the glyphs data set that is built if --data.path is not given."""
    embed_dims: tuple[int, ...] = ()
    """The values of model.embed_dim to choose from. None: five around that of model.embed_dim = auto."""
    kinds: tuple[NegativesKind, ...] = KINDS
    """The values of loss.negatives.kind to choose from. Kinds for which the data set has too few classes are left out."""
    search: tuple[str, ...] = ()
    """More settings to search, or other ranges: NAME=log:LOW:HIGH, NAME=uniform:LOW:HIGH or NAME=VALUE,VALUE,... with the
    dotted name of any setting."""
    register: str | None = None
    """Register the best model in MLflow at the end, as NAME@ALIAS; NAME alone gets the alias best."""

    def __post_init__(self) -> None:
        if self.register is not None:
            split_name(self.register)


def build_glyphs(num_classes: int, runs: Path) -> str:
    """Builds the default data set if it does not exist yet."""
    out = runs / "data" / f"glyphs-{num_classes}"
    subprocess.run(
        [sys.executable, str(ROOT / "datasets" / "glyphs.py"), "--out", str(out), "--num-classes", str(num_classes)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
    )
    return str(out)


def main(arguments: Arguments) -> None:
    """Runs the study and prints the results."""
    study = arguments.study
    if not arguments.run.data.path and arguments.preset != "glyphs":
        raise ValueError(
            f"--data.path is missing; the data set of preset {arguments.preset} is built by\n    {PRESETS[arguments.preset].build}"
        )
    runs = Path("runs" if "://" in study.runs else study.runs).resolve()
    path = (
        open_folder(arguments.run.data.path).location
        if arguments.run.data.path
        else build_glyphs(arguments.glyph_classes, runs)
    )
    info = read_info(path)
    num_classes = arguments.run.data.num_classes or info.num_classes
    base = absolute(override(arguments.run, {"data.path": path, "data.num_classes": num_classes}), study.runs)

    shown, held = base.data.val_samples, info.num_samples("val")
    if shown is not None and shown < held:
        print(f"mIoU is over the first {shown} of {held:,} validation samples (--data.val-samples None: over all)")

    added = [parse_dimension(text, base) for text in arguments.search]
    space = embedding_space(base, num_classes, dims=arguments.embed_dims, kinds=arguments.kinds)
    space = space.with_dimensions(*added)
    known = known_trials(base, num_classes, dims=arguments.embed_dims, kinds=arguments.kinds)
    names = {dimension.name for dimension in added}
    first = [{name: value for name, value in trial.items() if name not in names} for trial in known]
    with search(study, space, first=first, script="experiments/tune_embed_dim.py") as result:
        write_summary(
            result.rows,
            result.folder,
            result.run,
            sampled=result.sampled,
            confirmed=result.confirmed,
            register=arguments.register,
            within_gib=study.within_gib,
        )
    report(result, num_classes, info.name, study.within_gib)


def report(result: StudyResult, num_classes: int, data: str, within_gib: float | None) -> None:
    """Prints the table of the trials, the best one within an amount of memory, and where to find more."""
    print(f"\n{len(result.rows)} trials on {data}, {num_classes} classes, in {result.seconds:.0f} s\n")
    print(table(result.rows).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    for row in result.rows:
        if row.error:
            print(f"\ntrial {row.trial} ({row.outcome}): {row.error.strip().splitlines()[-1]}")
    if result.sampled is not None and (passed_over := len(infeasible_trials(result.sampled))):
        print(f"\n{passed_over} settings did not fit the memory budget and were not launched")
    if result.shared is not None:
        print(f"\n{result.shared}")
    if best_row(result.rows) is None:
        raise SystemExit("\nno trial reached a validation; see the errors above")
    if result.confirmed:
        print("\nthe best trials again, with other seeds")
        print(confirmation_table(result.confirmed).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    best = result.confirmed[0].best if result.confirmed else best_row(result.rows, within_gib)
    if best is None:
        print(
            f"\nno trial stayed within --best-under {within_gib:g}GiB; see peak_memory_gib and val/peak_memory_gib above"
        )
    else:
        print(f"\nbest: trial {best.trial}, val/miou {best.miou:.4f}: {flags_text(best.overrides)}")
    print(f"interactive figures: {result.folder / PAGE}")
    print(f"browse the trials: {dashboard_command(result.folder)}")
    for title, name in (("mIoU against memory", PARETO), ("predictions of the best", PREDICTIONS)):
        if (result.folder / name).is_file():
            print(f"{title}: {result.folder / name}")
    print(f"table, figures and predictions: {open_folder(result.location).name}")
    print(f"compare in MLflow: {result.run.tracker.ui_command()}")


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
