"""Summarizes a finished study: writes a table, figures and the best model to MLflow and to a folder."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pandas
from matplotlib.figure import Figure

from kiloseg.data.classes import select_classes
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import validation_batches
from kiloseg.plotting import curves, prediction_sheet, ranking, tradeoff
from kiloseg.storage.filesystems import LocalFolder, open_folder
from kiloseg.tracking.delivery import RunWriter
from kiloseg.training.checkpoint_names import PATTERN
from kiloseg.training.evaluation import load_segmenter, predict_samples
from kiloseg.tuning.confirmation import Confirmation, confirmation_table
from kiloseg.tuning.identity import TABLE as TABLE
from kiloseg.tuning.journal import JOURNAL, write_journal
from kiloseg.tuning.objectives import MEMORY, TIME, Objective, pareto_front, priced
from kiloseg.tuning.ranking import best_row
from kiloseg.tuning.registering import register_checkpoint
from kiloseg.tuning.search_page import search_page
from kiloseg.tuning.trial_row import TrialRow

SHEET_SAMPLES = 6
REPEATED = "confirmed.csv"
"""Name of the file in a study's folder that holds the best trials' mean and spread over seeds."""
PAGE = "search.html"
"""Name of the file in a study's folder that holds its interactive figures."""
PARETO = "pareto_memory.png"
"""Name of the file in a study's folder that plots mIoU against peak memory."""
PREDICTIONS = "best_predictions.png"
"""Name of the file in a study's folder that shows predictions of the best trial."""


def table(rows: Sequence[TrialRow]) -> pandas.DataFrame:
    """Returns a table of the trials, the best first, with a column for each setting by its dotted name.

    If trials of fewer steps were continued, a column names them.
    """
    continued = any(row.continues for row in rows)
    ranked = sorted(rows, key=lambda row: -1.0 if row.miou is None or math.isnan(row.miou) else row.miou, reverse=True)
    return pandas.DataFrame(
        [
            {
                "trial": row.trial,
                **row.overrides,
                "val/miou": row.miou,
                "peak_memory_gib": row.peak_memory_gib,
                "val/peak_memory_gib": row.val_peak_memory_gib,
                "train/images_per_s": row.images_per_s,
                "step": row.step,
                "seconds": round(row.seconds, 1),
                "train_seconds": round(row.train_seconds, 1),
                "outcome": row.outcome,
                **({"continues": row.continues} if continued else {}),
            }
            for row in ranked
        ]
    )


def study_figures(rows: Sequence[TrialRow]) -> dict[str, Figure]:
    """Returns plots by file name: mIoU against peak memory, and both against embedding dimension for each kind of negatives.

    Trials that do not vary both settings are left out of the latter.
    """
    points = [
        {
            **row.overrides,
            "val/miou": row.miou,
            "peak_memory_gib": row.peak_memory_gib,
            "complete": row.outcome != "stopped",
        }
        for row in rows
        if {"model.embed_dim", "loss.negatives.kind"} <= row.overrides.keys()
    ]
    shared: dict[str, Any] = {"x": "model.embed_dim", "by": "loss.negatives.kind", "x_label": "embedding dimension"}
    return {
        "miou_vs_embed_dim.png": curves(
            points, y="val/miou", y_label="validation mIoU", title="mIoU against embedding dimension", **shared
        ),
        "peak_memory_vs_embed_dim.png": curves(
            points,
            y="peak_memory_gib",
            y_label="peak memory (GiB)",
            title="Peak memory against embedding dimension",
            **shared,
        ),
        PARETO: front_figure(rows, MEMORY),
        "pareto_time.png": front_figure(rows, TIME),
    }


def front_figure(rows: Sequence[TrialRow], cost: Objective) -> Figure:
    """Plots mIoU against a cost for all trials, with the Pareto front."""
    return tradeoff(
        [(price, miou, row.outcome != "stopped") for price, miou, row in priced(rows, cost)],
        [(price, miou) for price, miou, _ in priced(pareto_front(rows, cost), cost)],
        x_label=cost.label,
        title=f"mIoU against {cost.label.rpartition(' (')[0]}",
    )


def best_sheet(row: TrialRow, checkpoint: Path) -> Figure:
    """Draws validation images, their labels and the predictions of a trial's best checkpoint."""
    segmenter, config = load_segmenter(checkpoint)
    info = read_info(config.data.path)
    samples = predict_samples(segmenter, validation_batches(config.data, info), SHEET_SAMPLES)
    return prediction_sheet(
        samples,
        num_classes=segmenter.num_classes,
        background=select_classes(config.data, info).background,
        title=f"{info.name}, trial {row.trial}: validation mIoU {row.miou:.3f}",
    )


def checkpoint_file(row: TrialRow, folder: Path | None = None) -> Path:
    """Returns the file of a trial's best checkpoint; one that is not on this machine is fetched into `folder`.

    Raises:
        ValueError: there is no checkpoint, or it is not on this machine and `folder` is None.
    """
    if row.checkpoint is None:
        raise ValueError(f"trial {row.trial} left no checkpoint")
    place = open_folder(row.checkpoint)
    names = fnmatch.filter(place.entries(), PATTERN)
    if not names:
        raise ValueError(f"{place.name} has no checkpoint (expected {PATTERN})")
    if isinstance(place, LocalFolder):
        return place.path / names[0]
    if folder is None:
        raise ValueError(f"{place.at(names[0])} is not on this machine; give a folder to copy it to")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / names[0]
    file.write_bytes(place.read(names[0]))
    return file


def write_summary(
    rows: Sequence[TrialRow],
    folder: Path,
    run: RunWriter,
    *,
    sampled: optuna.Study | None = None,
    confirmed: Sequence[Confirmation] = (),
    register: str | None = None,
    within_gib: float | None = None,
) -> None:
    """Writes trials.csv, the figures and the page to `folder`, and logs them to `run` with the best model and its numbers.

    Args:
        rows: the trials.
        folder: the folder.
        run: the study's run.
        sampled: the study as Optuna knows it, for figures of its settings and a file that optuna-dashboard opens; None: neither.
        confirmed: trials that were repeated with other seeds, the highest mean first; the best model is then the first one's.
        register: NAME or NAME@ALIAS under which to register the best model in MLflow; None: do not.
        within_gib: the most memory in GiB that the best model's training and validation may have needed; None: any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    frame = table(rows)
    frame.to_csv(folder / TABLE, index=False)
    run.log_file(folder / TABLE)
    # JSON does not support NaN.
    columns = {str(name): [None if pandas.isna(value) else value for value in frame[name]] for name in frame}
    run.log_table(columns, "trials.json")
    (folder / PAGE).write_text(search_page(rows, title=folder.name, sampled=sampled, within_gib=within_gib))
    run.log_file(folder / PAGE)
    if sampled is not None:
        write_journal(sampled, folder / JOURNAL, folder.name)
        run.log_file(folder / JOURNAL)
    figures = study_figures(rows)
    best = best_row(rows, within_gib)
    if confirmed:
        best = confirmed[0].best
        repeated = confirmation_table(confirmed)
        repeated.to_csv(folder / REPEATED, index=False)
        run.log_file(folder / REPEATED)
        over_seeds = {"best/miou_mean": confirmed[0].mean, "best/miou_std": confirmed[0].spread}
        # NaN if too few repetitions have a mIoU.
        run.log_metrics({name: value for name, value in over_seeds.items() if not math.isnan(value)}, step=0)
        figures["confirmed.png"] = ranking(
            {each.trial.trial: each.mious for each in confirmed},
            label="validation mIoU",
            title="The best trials with other seeds (bar: mean)",
        )
    if best is not None:
        run.log_metrics({"best/miou": best.miou or 0.0, "best/peak_memory_gib": best.peak_memory_gib or 0.0}, step=0)
        run.set_tags(
            {"best.trial": best.trial} | {f"best.{name}": str(value) for name, value in best.overrides.items()}
        )
    if best is not None and best.checkpoint is not None:
        checkpoint = checkpoint_file(best, folder / "best")
        figures[PREDICTIONS] = best_sheet(best, checkpoint)
        run.log_file(checkpoint, "best")
        if register is not None:
            print(register_checkpoint(checkpoint, run.delivery.study_run, register), end="")
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=130)
        run.log_file(folder / name)
