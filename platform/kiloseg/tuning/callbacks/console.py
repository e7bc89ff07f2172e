"""Prints the progress of a study while it runs: a table on a terminal, else lines."""

from __future__ import annotations

import time
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from kiloseg.tuning.callbacks.live_table import shown
from kiloseg.tuning.callbacks.settings_text import settings_text
from kiloseg.tuning.reports import BAD_SAMPLES, FAILED_OUTCOMES, METRIC, RESUMED, STEP, outcome_of

NAMED = 10
"""How many samples to name of those that a trial has skipped since its last result; MLflow's tag `bad_samples` has more."""


class Progress(tune.Callback):
    """Prints a line for each trial that starts, reports a validation, or ends.

    While this process shows a table (see `kiloseg.tuning.callbacks.live_table`), that has these numbers, and only what it does
    not have is printed: samples that are left out, interruptions and errors.
    """

    def __init__(self, num_trials: int, steps: int) -> None:
        self.num_trials = num_trials
        self.steps = steps
        self.began = time.time()
        self.named: set[tuple[str, str]] = set()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Shows the trial's number and settings."""
        place = f"{trials.index(trial) + 1} of {self.num_trials}"
        if not self._draw(trials, trial):
            self.tell(trial, f"starts ({place}): {settings_text(trial.config)}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Shows the trial's validation or why it ended, and the samples that it newly skips."""
        new = [text for text in result.get(BAD_SAMPLES, []) if (trial.trial_id, text) not in self.named]
        self.named |= {(trial.trial_id, text) for text in new}
        for text in new[:NAMED]:
            self.tell(trial, f"leaves out: {text}")
        if len(new) > NAMED:
            self.tell(trial, f"leaves out {len(new) - NAMED} more samples")
        on_table = self._draw(trials, trial, result)
        if RESUMED in result:
            self.tell(trial, f"continues from step {result[RESUMED]}")
        elif result.get("outcome") in FAILED_OUTCOMES:
            self.tell(trial, f"ends as {result['outcome']}: {result.get('error', '')}")
        elif not on_table:
            self.tell(
                trial,
                f"step {result[STEP]}/{self.steps}  {METRIC} {result[METRIC]:.4f}  loss {result['train/loss']:.3f}  "
                f"{result['train/images_per_s']:.1f} images/s  peak {result['peak_memory_gib']:.3f} GiB, "
                f"validation {result['val/peak_memory_gib']:.3f}",
            )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Shows that the trial is stopped early if the scheduler ended it."""
        if not self._draw(trials, trial) and outcome_of(trial.last_result or {}, self.steps) == "stopped":
            self.tell(trial, "is stopped early")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Prints that the trial was interrupted and starts again."""
        self._draw(trials, trial)
        self.tell(trial, "was interrupted and starts again")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Prints that the trial failed."""
        self._draw(trials, trial)
        self.tell(trial, "failed")

    @staticmethod
    def _draw(trials: list[Trial], trial: Trial, result: dict[str, Any] | None = None) -> bool:
        """Updates the trial's row of the table; returns whether there is a table."""
        table = shown()
        if table is not None:
            table.update(trials, trial, result)
        return table is not None

    def tell(self, trial: Trial, text: str) -> None:
        """Prints a line about a trial."""
        line = f"{time.time() - self.began:6.0f} s  trial {trial.trial_id}  {text}"
        if (table := shown()) is not None:
            table.print(line)
        else:
            print(line, flush=True)
