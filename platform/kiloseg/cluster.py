"""The Ray cluster that a study runs on: connecting to it, and what it has room for."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import ray

PACKAGE = Path(__file__).parent

WORKER_ENVIRONMENT = {
    # The default of 2 s is waited for at every report.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Watches for preempted cloud nodes; costs seconds at the start and end of a trial.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Set in the driver before Ray starts; Ray hands them on to the controllers."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets."""

    workers: int = 1
    """Training processes, each with a GPU of its own where there are any."""
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise ValueError(f"{self}: expected at least 1 worker, more than 0 CPUs and 0 or more GPUs a worker")


def start_ray() -> None:
    """Connects to the cluster that RAY_ADDRESS names, else starts a local one on loopback."""
    if ray.is_initialized():
        return
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Workers import the code of this checkout, not one that happens to be installed where they run.
    runtime_env = {"py_modules": [str(PACKAGE)], "env_vars": dict(WORKER_ENVIRONMENT)}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(runtime_env=runtime_env, logging_level=logging.WARNING)
        return
    # The dashboard serves the state API by which Train frees what a stopped trial held; without it a study hangs.
    ray.init(
        address="local",  # else a Ray that somebody else started on this machine would be taken
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        logging_level=logging.WARNING,
        log_to_driver=False,
    )


def trial_resources(workers: int, cpus_per_worker: float) -> Resources:
    """A GPU for each worker where the cluster has any, else CPU cores only."""
    gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    return Resources(workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus)


def concurrency(resources: Resources) -> int:
    """How many trials the cluster has room for at once.

    Raises:
        ValueError: none at all.
    """
    cluster = ray.cluster_resources()
    needs = {"CPU": resources.cpus_per_worker * resources.workers, "GPU": resources.gpus_per_worker * resources.workers}
    fitting = min(int(cluster.get(name, 0) // need) for name, need in needs.items() if need)
    if fitting < 1:
        raise ValueError(
            f"a trial needs {needs}, the cluster has {cluster.get('CPU', 0)} CPUs and {cluster.get('GPU', 0)} GPUs"
        )
    return fitting
