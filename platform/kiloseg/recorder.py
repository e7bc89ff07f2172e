"""A study's numbers on their way to MLflow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from kiloseg.config import Config, flatten, head_name, override
from kiloseg.reporter import FAILED_OUTCOMES, HISTORY, IOU_PER_CLASS, STEP, outcome_of
from kiloseg.summary import iou_table
from kiloseg.tracking import TrackedRun

logger = logging.getLogger(__name__)


class Recorder(tune.Callback):
    """Writes every trial's numbers to its MLflow run. One writer for all trials; trials know nothing of MLflow.

    Args:
        study: the parent run.
        base: the run that trials vary.
        tags: of every trial's run.
    """

    def __init__(self, study: TrackedRun, base: Config, tags: Mapping[str, str]) -> None:
        self.study = study
        self.base = base
        self.tags = dict(tags)
        self.runs: dict[str, TrackedRun] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Makes its run, or finds it again."""
        self._write(trial, lambda run: None)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Its numbers since the result before."""

        def write(run: TrackedRun) -> None:
            for report in result[HISTORY]:
                run.log_metrics({name: value for name, value in report.items() if name != STEP}, step=report[STEP])
            run.set_tags(
                {name: str(result[name]) for name in ("outcome", "error", "peak_memory_kind") if name in result}
            )
            run.log_metrics({"oom": result["oom"]}, step=result[STEP])
            if IOU_PER_CLASS in result:
                data = override(self.base, trial.config).data
                run.log_table(iou_table(data, result[IOU_PER_CLASS]), "iou_per_class.json")

        self._write(trial, write)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Ends its run."""
        outcome = outcome_of(trial.last_result or {}, self.base.trainer.steps)
        self._end(trial, outcome, "FAILED" if outcome in FAILED_OUTCOMES else "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Ends its run as failed."""
        self._end(trial, "failed", "FAILED")

    def _end(self, trial: Trial, outcome: str, status: str) -> None:
        def end(run: TrackedRun) -> None:
            run.set_tags({"outcome": outcome})
            run.end(status)

        self._write(trial, end)

    def _write(self, trial: Trial, action: Callable[[TrackedRun], None]) -> None:
        """Tracking that fails costs its own numbers only: the study goes on, and Ray's results hold them as well."""
        try:
            if trial.trial_id not in self.runs:
                config = override(self.base, trial.config)
                tags = self.tags | {"head": head_name(config)}
                self.runs[trial.trial_id] = self.study.tracker.trial_run(
                    self.study, trial.trial_id, flatten(config), tags
                )
            action(self.runs[trial.trial_id])
        except Exception as error:
            logger.warning("MLflow did not take numbers of trial %s (%s); the study goes on", trial.trial_id, error)
