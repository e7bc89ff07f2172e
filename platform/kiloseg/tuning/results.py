"""Reads the trials of an ended study back from Ray's results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas
from ray.tune import Result, ResultGrid

from kiloseg.config import Config
from kiloseg.storage.filesystems import inside, open_folder
from kiloseg.training.checkpoint_names import checkpoint_name
from kiloseg.tuning.reports import CHECKPOINT, FAILED_OUTCOMES, HISTORY, METRIC, STEP, outcome_of, run_of
from kiloseg.tuning.trial_row import TrialRow


def trial_rows(grid: ResultGrid, base: Config, checkpoints: str) -> list[TrialRow]:
    """Returns a row for every trial of a study.

    Args:
        grid: the results that Tune returns.
        base: the run that the trials vary.
        checkpoints: folder of all trials' checkpoints, by path or URL.
    """
    return [_row(grid[index], base, checkpoints) for index in range(len(grid))]


def _row(result: Result, base: Config, checkpoints: str) -> TrialRow:
    last = result.metrics or {}
    trial = Path(result.path).name
    outcome = "failed" if result.error else outcome_of(last, base.trainer.steps)
    best = None if outcome in FAILED_OUTCOMES else _best_validation(result)
    folder = inside(checkpoints, run_of(trial))
    return TrialRow(
        trial=trial,
        outcome=outcome,
        overrides=dict(result.config or {}),
        miou=None if best is None else best.miou,
        last_miou=None if best is None else float(last[METRIC]),
        step=int(last.get(STEP, 0)),
        peak_memory_gib=last.get("peak_memory_gib"),
        val_peak_memory_gib=last.get("val/peak_memory_gib"),
        images_per_s=last.get("train/images_per_s"),
        seconds=float(last.get("time_total_s", 0.0)),
        train_seconds=float(last.get("train_s", 0.0)),
        error=str(result.error or last.get("error", "")),
        checkpoint=None if best is None else best.checkpoint_in(folder),
        folder=folder,
    )


@dataclass(frozen=True, kw_only=True)
class _Validation:
    miou: float
    step: int
    checkpoint: str | None
    """Name of the folder of its checkpoint; None if no result names it."""

    def checkpoint_in(self, trial: str) -> str | None:
        """Returns the folder of its checkpoint inside `trial`, the folder of the trial's checkpoints; None if it is gone."""
        if self.checkpoint is not None:
            return inside(trial, self.checkpoint)
        place, file = open_folder(trial), checkpoint_name(self.step)
        held = (name for name in place.entries() if name.startswith("checkpoint_") and file in place.entries(name))
        return next((inside(trial, name) for name in held), None)


def _best_validation(result: Result) -> _Validation | None:
    frame = result.metrics_dataframe
    if frame is None or HISTORY not in frame:
        return None
    # The scores come from the histories: when a study is resumed on another machine, Ray forgets a trial's earlier results,
    # but the first result after that repeats the history of the whole run.
    scores = {report[STEP]: report[METRIC] for history in frame[HISTORY] for report in history if METRIC in report}
    if not scores:
        return None
    best = max(scores, key=lambda step: (scores[step], step))  # among equal scores Train keeps the later checkpoints
    named = frame[frame[STEP] == best].get(CHECKPOINT, pandas.Series(dtype=object)).dropna()
    # Ray stores a path on the machine that wrote it, without its filesystem, so that only the last part is useful.
    name = named.iloc[-1].partition("?")[0].rsplit("/", 1)[-1] if len(named) else None
    return _Validation(miou=float(scores[best]), step=best, checkpoint=name)
