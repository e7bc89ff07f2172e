"""The Ray cluster that a study runs on: connecting to it, and what it has room for."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from kiloseg.tuning.ray_workarounds.environment import LOCAL_VARIABLES, WORKER_VARIABLES, set_defaults
from kiloseg.tuning.ray_workarounds.loopback import dashboard_port, keep_to_loopback

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets of the cluster."""

    workers: int = 1
    """Training processes, each with a GPU of its own where there are any."""
    cpus_per_worker: float = 1.0
    """CPU cores of a training process, more than 0."""
    gpus_per_worker: float = 0.0
    """GPUs of a training process, 0 or more."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus_per_worker <= 0 or self.gpus_per_worker < 0:
            raise ValueError(f"{self}: expected at least 1 worker, more than 0 CPUs and 0 or more GPUs a worker")


def check_kept(folder: Path) -> None:
    """Refuses results in the folder of a submitted job, which Ray removes when the job is over.

    Raises:
        ValueError: `folder` lies there.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and folder.is_relative_to(PACKAGE.parents[1]):
        raise ValueError(f"runs = {str(folder)!r} goes when this job is over; give --runs a folder that all nodes see")


@contextlib.contextmanager
def ray_connection() -> Iterator[None]:
    """A connection to Ray for the time of a `with` block; one that this process has already is used and left as it is."""
    if ray.is_initialized():
        yield
        return
    try:
        start_ray()
        yield
    finally:
        ray.shutdown()


def start_ray() -> None:
    """Connects to the cluster that RAY_ADDRESS names, else starts a local one that listens on loopback alone."""
    if ray.is_initialized():
        return
    set_defaults(WORKER_VARIABLES)
    # Workers import the code of this checkout, not one that happens to be installed where they run. What they print stays in
    # Ray's logs: the driver prints a line for every report already.
    address = os.environ.get("RAY_ADDRESS")
    if address:
        variables = dict(WORKER_VARIABLES)
        if address != "auto":
            # Train's own processes ask the state API of the newest cluster of the machine if they are not told which.
            variables["RAY_ADDRESS"] = address
        runtime_env = {"py_modules": [str(PACKAGE)], "env_vars": variables}
        ray.init(runtime_env=runtime_env, logging_level=logging.WARNING, log_to_driver=False)
        return
    keep_to_loopback()
    set_defaults(LOCAL_VARIABLES)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with dashboard_port() as port:
        ray.init(
            address="local",  # by default Ray joins a cluster that anybody started on this machine
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )


def trial_resources(workers: int, cpus_per_worker: float, gpus_per_worker: float | None = None) -> Resources:
    """What a trial gets. `gpus_per_worker` None: a GPU for each worker where the cluster has any now, else CPU cores alone."""
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    return Resources(workers=workers, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker)


def concurrency(resources: Resources) -> int:
    """How many trials the cluster has room for at once.

    Raises:
        ValueError: it has no room for a single one.
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
