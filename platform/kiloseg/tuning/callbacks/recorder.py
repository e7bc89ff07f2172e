"""A study's numbers on their way to MLflow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from kiloseg.config import Config
from kiloseg.overrides import flatten, head_name, override
from kiloseg.tracking.delivery import Delivery, RunWriter
from kiloseg.tuning.reports import BAD_SAMPLES, FAILED_OUTCOMES, HISTORY, IOU_PER_CLASS, METRIC, STEP, outcome_of
from kiloseg.tuning.summary import iou_table

logger = logging.getLogger(__name__)

TAG_LENGTH = 5000
"""Characters that every store of MLflow takes in a tag."""

_current: Recorder | None = None
"""Of the study that this process runs."""


class Recorder(tune.Callback):
    """Hands every trial's numbers to the study's delivery. One writer for all trials; trials know nothing of MLflow.

    Args:
        delivery: the study's.
        base: the run that trials vary.
        tags: of every trial's run.
    """

    def __init__(self, delivery: Delivery, base: Config, tags: Mapping[str, str]) -> None:
        global _current
        self.delivery = delivery
        self.base = base
        self.tags = dict(tags)
        self.begun: set[str] = set()
        _current = self

    def __reduce__(self) -> tuple[Callable[[], Recorder | None], tuple[()]]:
        """Tune keeps its callbacks in the study's folder and takes them from there at a resumption, maybe on another machine.

        What belongs to a process stays with it, so that the one that resumes gets its own.
        """
        return _of_this_process, ()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Makes its run, or finds it again."""
        self._write(trial, lambda run: None)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Its numbers since the result before."""

        def write(run: RunWriter) -> None:
            # What goes on from a checkpoint tells the history of the whole run again, so that nothing is missing of one whose
            # last numbers were lost with a machine; whoever has come to a validation had memory enough until then.
            points = [
                (name, value, report[STEP])
                for report in result[HISTORY]
                for name, value in (report | {"oom": 0} if METRIC in report else report).items()
                if name != STEP
            ]
            # A step that there was no memory for came after the last report, of which it is known that there was.
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
        """Ends its run."""
        outcome = outcome_of(trial.last_result or {}, self.base.trainer.steps)
        self._end(trial, outcome, "FAILED" if outcome in FAILED_OUTCOMES else "FINISHED")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Ends its run as failed."""
        self._end(trial, "failed", "FAILED")

    def _end(self, trial: Trial, outcome: str, status: str) -> None:
        def end(run: RunWriter) -> None:
            run.set_tags({"outcome": outcome})
            run.end(status)

        self._write(trial, end)
        self.begun.discard(trial.trial_id)

    def _write(self, trial: Trial, action: Callable[[RunWriter], None]) -> None:
        """Tracking that fails costs its own numbers only: the study goes on, and Ray's results hold them as well."""
        try:
            run = self.delivery.trial(trial.trial_id)
            if trial.trial_id not in self.begun:
                config = override(self.base, trial.config)
                run.begin(flatten(config), self.tags | {"head": head_name(config)})
                self.begun.add(trial.trial_id)
            action(run)
        except Exception as error:
            logger.warning("numbers of trial %s are lost to MLflow (%s); the study goes on", trial.trial_id, error)


def _of_this_process() -> Recorder | None:
    return _current
