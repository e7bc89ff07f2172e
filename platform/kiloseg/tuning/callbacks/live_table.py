"""Shows the trials of a study on a terminal as a table that is drawn again in place."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ray.tune.experiment import Trial
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kiloseg.tuning.callbacks.settings_text import settings_text
from kiloseg.tuning.reports import FAILED_OUTCOMES, METRIC, STEP, outcome_of

AROUND = 7
"""Lines of the terminal that the table's head and foot and the prompt take."""
PADDING = 3
"""Spaces between two columns."""
WIDE = 110
"""Characters of a line from which on all columns are shown."""
COLUMNS = {"trial": 8, "state": 8, "step": 7, "": 10, "mIoU": 6, "loss": 6, "images/s": 8, "peak GiB": 8}
"""Names of the columns before that of the settings, with their least widths in characters; the one without a name is a bar."""
LEFT_OUT = ("", "loss", "images/s")
"""Columns that narrower terminals do not show."""
NUMBERS = {
    "mIoU": (METRIC, ".4f"),
    "loss": ("train/loss", ".3f"),
    "images/s": ("train/images_per_s", ".1f"),
    "peak GiB": ("peak_memory_gib", ".3f"),
}
"""Which number of a result a column shows, and its format."""

_shown: LiveTable | None = None
"""The table that this process shows."""


class LiveTable:
    """The table of a study's trials: the ones that run, then the ended ones, the best first.

    Args:
        console: where to draw it.
        num_trials: total number of trials.
        steps: steps of a whole trial.
    """

    def __init__(self, console: Console, num_trials: int, steps: int) -> None:
        self.console = console
        self.num_trials = num_trials
        self.steps = steps
        self.began = time.monotonic()
        self.trials: Sequence[Trial] = ()
        self.results: dict[str, dict[str, Any]] = {}
        """The last result of each trial by the trial's id."""

    def update(self, trials: Sequence[Trial], trial: Trial, result: dict[str, Any] | None = None) -> None:
        """Sets what is shown from the next drawing on, which is at most a second away.

        Args:
            trials: all trials.
            trial: the one that changed.
            result: its new result; None: it has none.
        """
        self.trials = list(trials)
        if result is not None:
            self.results[trial.trial_id] = result
        # Of trials that ended before the study was resumed. That of one that has just started would be waited for.
        self.results |= {
            each.trial_id: each.last_result or {}
            for each in trials
            if each.is_finished() and each.trial_id not in self.results
        }

    def print(self, text: str) -> None:
        """Prints a line above the table."""
        self.console.print(Text(text))

    def rows(self) -> list[Trial]:
        """Returns the trials in the order of the table."""
        started = [trial for trial in self.trials if trial.status != Trial.PENDING or self._last(trial)]
        return sorted(started, key=lambda trial: (trial.is_finished(), -self._miou(trial)))

    def table(self) -> Table:
        """Returns the table as it is now; trials that do not fit on the terminal are counted below it."""
        rows = self.rows()
        ended = sum(trial.is_finished() for trial in rows)
        best = max(rows, key=self._miou, default=None)
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        table = Table(
            title=f"{ended} of {self.num_trials} trials ended, {len(rows) - ended} running, {minutes}:{seconds:02d} min",
            title_justify="left",
            box=SIMPLE_HEAD,
        )
        names = [*COLUMNS] if self.console.width >= WIDE else [name for name in COLUMNS if name not in LEFT_OUT]
        around = sum(COLUMNS[name] + PADDING for name in names)
        width = max(self.console.width - around - PADDING, 12)
        for name in names:
            table.add_column(
                name, no_wrap=True, min_width=COLUMNS[name], justify="right" if name in NUMBERS else "left"
            )
        table.add_column("settings", width=width)
        room = self.console.height - AROUND
        for number, trial in enumerate(rows):
            cells = self._cells(trial)
            settings = settings_text(trial.config)
            room -= len(textwrap.wrap(settings, width)) or 1
            if room < 0 and number:
                table.caption = f"and {len(rows) - number} more"
                break
            style = "bold green" if trial is best and self._miou(trial) >= 0 else None
            table.add_row(*(cells[name] for name in names), settings, style=style)
        return table

    def _cells(self, trial: Trial) -> dict[str, str | ProgressBar]:
        last = self._last(trial)
        step = int(last.get(STEP, 0))
        return {
            "trial": trial.trial_id,
            "state": self._state(trial),
            "step": f"{step}/{self.steps}",
            "": ProgressBar(total=self.steps, completed=step, width=COLUMNS[""]),
        } | {name: format(last[key], pattern) if key in last else "" for name, (key, pattern) in NUMBERS.items()}

    def _state(self, trial: Trial) -> str:
        last = self._last(trial)
        if trial.status == Trial.ERROR:
            return "failed"
        if trial.is_finished() or last.get("outcome") in FAILED_OUTCOMES:
            return outcome_of(last, self.steps)
        if trial.status == Trial.PENDING:
            return "waiting"
        return "training" if last else "starting"

    def _last(self, trial: Trial) -> dict[str, Any]:
        return self.results.get(trial.trial_id, {})

    def _miou(self, trial: Trial) -> float:
        miou = float(self._last(trial).get(METRIC, -1.0))
        return -1.0 if math.isnan(miou) else miou


def shown() -> LiveTable | None:
    """Returns the table that this process shows; None: there is none, so that lines are printed instead."""
    return _shown


@contextlib.contextmanager
def live_table(num_trials: int, steps: int, console: Console | None = None) -> Iterator[None]:
    """Shows the table for the duration of a `with` block if standard output is a terminal that can draw it.

    Args:
        num_trials: total number of trials.
        steps: steps of a whole trial.
        console: where to draw it; None: standard output.
    """
    global _shown
    console = console or Console(file=sys.stdout)
    if not console.is_terminal or console.is_dumb_terminal or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        yield
        return
    _shown = LiveTable(console, num_trials, steps)
    try:
        with Live(console=console, get_renderable=_shown.table, refresh_per_second=1, vertical_overflow="crop"):
            yield
    finally:
        _shown = None
