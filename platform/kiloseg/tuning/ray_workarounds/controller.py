"""Runs the controller of a trial's Ray Train run in the trial's own process, without the actors that Ray would start for it.

Seen on Ray 2.60: every Train run starts four actors besides its workers and a barrier for them: the controller, a queue for
the controller's reports to Tune, a cleaner for its placement group, and one that serves data sets of Ray Data. Each is a
process that spends 1.5 to 2 s of CPU on imports, together two thirds of what a short trial costs beyond its training. Here
the controller runs in Tune's actor, which only waits for it anyway, reports go straight to Tune, a thread of the driver cleans
up after all trials (see `kiloseg.tuning.ray_workarounds.placement_groups`), and there are no data sets of Ray Data.

It can go when benchmarks/orchestration.py is as fast with Ray's own trainer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ray import tune
from ray.train import Checkpoint, UserCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result

from kiloseg.tuning.ray_workarounds.placement_groups import WatchCallback
from kiloseg.tuning.reports import CHECKPOINT

LEFT_OUT = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""Names of Ray's callbacks that each start an actor."""


class TrainerInTrial(DataParallelTrainer):
    """Ray's trainer, which runs the controller in the process that calls `fit`: a Tune actor.

    Args:
        arguments: those of Ray's trainer.
        watch: the name under which the placement group is written down, to be removed if this process dies.
        keywords: those of Ray's trainer.
    """

    def __init__(self, *arguments: Any, watch: str, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._watch = watch

    def _create_default_callbacks(self) -> list[Any]:
        kept = [each for each in super()._create_default_callbacks() if type(each).__name__ not in LEFT_OUT]
        return [*kept, WatchCallback(self._watch)]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        controller = TrainController(**settings)
        asyncio.run(controller.run())
        return controller.get_result()


class ReportToTune(UserCallback):
    """Passes every report of rank 0 to Tune.

    Tune ends a trial that it stops inside `tune.report`, by SystemExit; its workers end with the process.
    """

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Reports to Tune, with the path of the checkpoint if there is a new one."""
        tune.report(metrics[0] | ({} if checkpoint is None else {CHECKPOINT: checkpoint.path}))
