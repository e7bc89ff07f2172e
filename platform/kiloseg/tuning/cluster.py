"""The Ray cluster that a study runs on: connecting to it, and what it has room for."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private import ray_constants

PACKAGE = Path(__file__).parents[1]

WORKER_ENVIRONMENT = {
    # The default of 2 s is waited for at every report.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Watches for preempted cloud nodes; costs seconds at the start and end of a trial.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Set in the driver before Ray starts; Ray hands them on to the controllers."""

LOCAL_ENVIRONMENT = {
    # Every process that there ever was keeps a file of events, empty, that the dashboard looks at every 2 s.
    "RAY_event_log_reporter_enabled": "0",
    # Below so many files of workers Ray looks ten times a second for new ones, among those of all processes so far.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
}
"""Set before a cluster of this machine starts, whose processes share the cores with the trials."""


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


def check_kept(folder: Path) -> None:
    """Refuses results in the folder of a submitted job, which is Ray's and goes when the job is over.

    Raises:
        ValueError: `folder` lies there.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and folder.is_relative_to(PACKAGE.parents[1]):
        raise ValueError(f"runs = {str(folder)!r} goes when this job is over; give --runs a folder that all nodes see")


def start_ray() -> None:
    """Connects to the cluster that RAY_ADDRESS names, else starts a local one, all of it on loopback."""
    if ray.is_initialized():
        return
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Workers import the code of this checkout, not one that happens to be installed where they run. What they print stays in
    # Ray's logs: the driver prints a line for every report already.
    if os.environ.get("RAY_ADDRESS"):
        variables = dict(WORKER_ENVIRONMENT)
        if os.environ["RAY_ADDRESS"] != "auto":
            # Train's own processes ask the state API of the newest cluster of the machine if they are not told which.
            variables["RAY_ADDRESS"] = os.environ["RAY_ADDRESS"]
        runtime_env = {"py_modules": [str(PACKAGE)], "env_vars": variables}
        ray.init(runtime_env=runtime_env, logging_level=logging.WARNING, log_to_driver=False)
        return
    # Ray takes the machine's own address, and so listens to the network, even for a cluster of one; this is how it is told to
    # keep to loopback, which it does by itself on other systems than Linux.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    # The dashboard serves the state API by which Train frees what a stopped trial held; without it a study hangs. Workers inherit
    # where it is. Else they look for the newest cluster of this machine, which may be another, or one that was killed.
    port = _free_port()
    with _environment(ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE, f"http://127.0.0.1:{port}"):
        ray.init(
            address="local",  # by default Ray joins a cluster that anybody started on this machine
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """While entered, and so in processes that are started meanwhile, the variable has this value."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def trial_resources(workers: int, cpus_per_worker: float, gpus_per_worker: float | None = None) -> Resources:
    """What a trial gets; with None a GPU for each worker where the cluster has any now, else CPU cores only."""
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    return Resources(workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker)


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
            f"a trial needs {needs}, the cluster has {cluster.get('CPU', 0)} CPUs and {cluster.get('GPU', 0)} GPUs; on one "
            "whose workers start when they are asked for, say --gpus-per-worker 1 and --max-concurrent"
        )
    return fitting
