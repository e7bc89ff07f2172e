"""Records the numbers of a study's trials in MLflow."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from kiloseg.config import Config
from kiloseg.data.classes import iou_table, with_sizes_of_data
from kiloseg.overrides import flatten, head_name, override
from kiloseg.tracking.delivery import Delivery, RunWriter
from kiloseg.tuning.reports import BAD_SAMPLES, FAILED_OUTCOMES, HISTORY, IOU_PER_CLASS, METRIC, STEP, outcome_of

logger = logging.getLogger(__name__)

TAG_LENGTH = 5000
"""Longest tag, in characters, that every store of MLflow accepts."""

_current: Recorder | None = None
"""The recorder of the study that this process runs."""


class Recorder(tune.Callback):
    """Passes every trial's numbers to the study's delivery. It is the only writer, and trials themselves do not use MLflow.

    Args:
        delivery: the delivery of the study.
        base: the run that trials vary.
        tags: tags of every trial's run.
    """

    def __init__(self, delivery: Delivery, base: Config, tags: Mapping[str, str]) -> None:
        global _current
        self.delivery = delivery
        self.base = base
        self.tags = dict(tags)
        self.begun: set[str] = set()
        _current = self

    def __reduce__(self) -> tuple[Callable[[], Recorder | None], tuple[()]]:
        """Unpickles as the recorder of the current process.

        Tune saves its callbacks in the study's folder and loads them when the study is resumed, perhaps on another machine. A
        recorder belongs to its process, so the process that resumes uses its own.
        """
        return _of_this_process, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Creates the trial's run, or finds the existing one."""
        self._write(trial, lambda run: None)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Logs the trial's numbers since the previous result."""

        def write(run: RunWriter) -> None:
            # A trial that continues from a checkpoint repeats the history of the whole run, so that nothing is missing if its
            # last numbers were lost with a machine. A trial that reached a validation had enough memory until then.
            points = [
                (name, value, report[STEP])
                for report in result[HISTORY]
                for name, value in (report | {"oom": 0} if METRIC in report else report).items()
                if name != STEP
            ]
            # A step that ran out of memory comes after the last report, whose step is known to have had enough.
            run.log_points([*points, ("oom", result["oom"], result[STEP] + result["oom"])])
            tags: dict[str, str] = {}
            tags |= {name: str(result[name]) for name in ("outcome", "error", "peak_memory_kind") if name in result}
            if BAD_SAMPLES in result:
                tags[BAD_SAMPLES] = "\n".join(result[BAD_SAMPLES])[:TAG_LENGTH]
            run.set_tags(tags)
            if IOU_PER_CLASS in result:
                data = override(self.base, trial.config).data
                run.log_table(iou_table(data, result[IOU_PER_CLASS]), "iou_per_class.json")

        self._write(trial, write)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Ends the trial's run with its outcome."""
        outcome = outcome_of(trial.last_result or {}, self.base.trainer.steps)
        self._end(trial, outcome, "FAILED" if outcome in FAILED_OUTCOMES else "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Ends the trial's run as failed."""
        self._end(trial, "failed", "FAILED")

    def _end(self, trial: Trial, outcome: str, status: str) -> None:
        def end(run: RunWriter) -> None:
            run.set_tags({"outcome": outcome})
            run.end(status)

        self._write(trial, end)
        self.begun.discard(trial.trial_id)

    def _write(self, trial: Trial, action: Callable[[RunWriter], None]) -> None:
        """Writes to a trial's run. An error is only logged: the study continues, and Ray's results hold the numbers too."""
        try:
            run = self.delivery.trial(trial.trial_id)
            if trial.trial_id not in self.begun:
                config = override(self.base, trial.config)
                with contextlib.suppress(ValueError):  # a trial that is refused is recorded as it was given
                    config = with_sizes_of_data(config)
                run.begin(flatten(config), self.tags | {"head": head_name(config)})
                self.begun.add(trial.trial_id)
            action(run)
        except Exception as error:
            logger.warning("numbers of trial %s are lost to MLflow (%s); the study continues", trial.trial_id, error)


def _of_this_process() -> Recorder | None:
    return _current
