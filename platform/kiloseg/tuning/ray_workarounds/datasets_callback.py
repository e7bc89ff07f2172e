"""Keeps a trial from starting a process that serves data sets of Ray Data.

Seen on Ray 2.60: every Train run starts an actor for data sets of Ray Data, which our trials do not use; it costs 1.5 s of CPU
per trial.

It can go when tests/tuning/test_ray_private_names.py::test_a_trainer_without_data_sets_still_starts_a_callback_for_them fails.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class TrainerWithoutDatasets(DataParallelTrainer):
    """Ray's trainer without the callback for data sets of Ray Data."""

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if type(each).__name__ != "DatasetsCallback"]
