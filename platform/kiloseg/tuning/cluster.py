"""Connects to the Ray cluster that a study runs on, and computes how many trials it has room for."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from kiloseg.storage.sockets import PROCESSES_NEED, short_folder
from kiloseg.tuning.ray_workarounds.environment import LOCAL_VARIABLES, WORKER_VARIABLES, set_defaults
from kiloseg.tuning.ray_workarounds.loopback import dashboard_port, keep_to_loopback
from kiloseg.tuning.ray_workarounds.quiet import hide_token_message

PACKAGE = Path(__file__).parents[1]

UNITS = 10_000
"""Ray counts resources in units of 1 / 10,000 and rounds what is asked for to these."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The share of the cluster that one trial gets."""

    workers: int = 1
    """Training processes, 1 or more; each has its own GPU if the cluster has GPUs."""
    cpus_per_worker: float = 1.0
    """CPU cores per training process, more than 0."""
    gpus_per_worker: float = 0.0
    """GPUs per training process: a whole number, or a share below 1 of a GPU that other trials use too."""

    def __post_init__(self) -> None:
        gpus = self.gpus_per_worker
        if self.workers < 1 or not self.cpus_per_worker > 0 or not gpus >= 0:
            raise ValueError(f"{self}: expected at least 1 worker, more than 0 CPUs and 0 or more GPUs a worker")
        if gpus > 1 and gpus % 1:
            raise ValueError(f"gpus_per_worker = {gpus}: expected a whole number of GPUs, or a share of one below 1")
        if 0 < gpus < 1 / UNITS:
            raise ValueError(
                f"gpus_per_worker = {gpus}: expected 0, or at least {1 / UNITS}, the smallest share in Ray"
            )
        if self.workers > 1 and self.shares_gpu:
            raise ValueError(
                f"workers = {self.workers}, gpus_per_worker = {gpus}: expected 1 worker where trials share a GPU, since NCCL "
                "refuses two workers of a trial on one GPU"
            )

    @property
    def shares_gpu(self) -> bool:
        """Whether a training process gets a share of a GPU that other trials use too."""
        return 0 < self.gpus_per_worker < 1


def check_kept(folder: Path) -> None:
    """Rejects a folder of results inside that of a submitted job, which Ray removes when the job is over.

    Raises:
        ValueError: `folder` is inside that of a submitted job.
    """
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and folder.is_relative_to(PACKAGE.parents[1]):
        raise ValueError(
            f"runs = {str(folder)!r} is removed when this job ends; set --runs to a folder that all nodes see"
        )


@contextlib.contextmanager
def ray_connection() -> Iterator[None]:
    """Connects to Ray for the duration of a `with` block; an existing connection of this process is used and kept open."""
    if ray.is_initialized():
        yield
        return
    try:
        start_ray()
        yield
    finally:
        ray.shutdown(wait_for_processes=True)


def start_ray() -> None:
    """Connects to the cluster that RAY_ADDRESS names, else starts a local one that listens only on loopback."""
    if ray.is_initialized():
        return
    set_defaults(WORKER_VARIABLES)
    # Workers import the code of this checkout, not a version that happens to be installed where they run. Their output stays
    # in Ray's logs, since the driver already prints a line for every report.
    address = os.environ.get("RAY_ADDRESS")
    if address:
        variables = dict(WORKER_VARIABLES)
        if address != "auto":
            # Without this, Train's own processes ask the state API of the newest cluster on the machine.
            variables["RAY_ADDRESS"] = address
        runtime_env = {"py_modules": [str(PACKAGE)], "env_vars": variables}
        ray.init(runtime_env=runtime_env, logging_level=logging.WARNING, log_to_driver=False)
        return
    keep_to_loopback()
    hide_token_message()
    set_defaults(LOCAL_VARIABLES)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    with dashboard_port() as port, _short_temporary_folder() as folder:
        ray.init(
            _temp_dir=folder,
            address="local",  # by default Ray joins any cluster that someone started on this machine
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )


@contextlib.contextmanager
def _short_temporary_folder() -> Iterator[str | None]:
    """Provides a folder for Ray's sockets and logs where TMPDIR, or RAY_TMPDIR, is too long for them; None: Ray uses its own.

    Processes that start inside the `with` block have a TMPDIR that is short enough too, since Ray's dashboard keeps sockets
    there. The folder is removed when this process ends, as Ray runs until then.
    """
    needs = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store_1")
    folder = short_folder("kiloseg-ray-", needs=needs, usual=os.environ.get("RAY_TMPDIR"))
    short = folder or short_folder("kiloseg-ray-", needs=PROCESSES_NEED)
    usual = os.environ.get("TMPDIR")
    if short is not None:
        atexit.register(shutil.rmtree, short, ignore_errors=True)
        os.environ["TMPDIR"] = str(short)
    try:
        yield None if folder is None else str(folder)
    finally:
        if usual is not None:
            os.environ["TMPDIR"] = usual
        elif short is not None:
            del os.environ["TMPDIR"]


def has_gpu() -> bool:
    """Returns whether the cluster has a GPU now."""
    return float(ray.cluster_resources().get("GPU", 0)) >= 1


def gpu_share(trials: int) -> float:
    """Returns the share of a GPU that each of `trials` gets, from 1 to 10,000 of them.

    It is rounded down to what Ray can count: of a sixth, which Ray rounds up to 0.1667, only five would fit on a GPU.
    """
    return UNITS // trials / UNITS


def trials_per_node(max_concurrent: int, resources: Resources) -> int:
    """Returns how many trials one node may run at once, at least 1.

    Args:
        max_concurrent: the most trials of the study at once; 0: as many as fit.
        resources: the share of the cluster that one trial gets.
    """
    most = max(_workers_by_node(resources), default=1) // resources.workers
    return max(min(most, max_concurrent or most), 1)


def concurrency(resources: Resources) -> int:
    """Returns how many trials the cluster has room for at once.

    Raises:
        ValueError: it has no room for a single trial.
    """
    fitting = sum(_workers_by_node(resources)) // resources.workers
    if fitting < 1:
        cluster = ray.cluster_resources()
        needs = {
            "CPU": resources.cpus_per_worker * resources.workers,
            "GPU": resources.gpus_per_worker * resources.workers,
        }
        raise ValueError(
            f"a trial needs {needs}, the cluster has {cluster.get('CPU', 0)} CPUs and {cluster.get('GPU', 0)} GPUs, and each "
            "worker's share must be on one node; on a cluster whose workers start on demand, set --gpus-per-worker 1 (or --pack) "
            "and --max-concurrent"
        )
    return fitting


def sharing(resources: Resources, at_once: int) -> str:
    """Returns a sentence that says how many trials share a GPU, and what keeps the cluster's GPUs from being full if they are not.

    Args:
        resources: the share of the cluster that one trial gets, less than a GPU.
        at_once: how many trials run at once.
    """
    on_gpu = UNITS // _units(resources.gpus_per_worker)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    text = f"up to {on_gpu} trials share a GPU, {at_once} run at once"
    if at_once < gpus * on_gpu:
        text += (
            f"; {gpus} GPUs have room for {gpus * on_gpu}: see --max-concurrent, and --cpus-per-worker "
            f"({resources.cpus_per_worker:g} CPUs a trial) if a node has too few CPUs"
        )
    return text


def _workers_by_node(resources: Resources) -> list[int]:
    """Returns how many training processes each node of the cluster has room for."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = [round(node.get("CPU", 0) * UNITS) // _units(resources.cpus_per_worker) for node in nodes]
    if resources.shares_gpu:  # a share lies on one GPU
        on_gpu = UNITS // _units(resources.gpus_per_worker)
        return [min(by_cpu, int(node.get("GPU", 0)) * on_gpu) for by_cpu, node in zip(found, nodes, strict=True)]
    if resources.gpus_per_worker:
        need = resources.gpus_per_worker
        return [min(by_cpu, int(node.get("GPU", 0) // need)) for by_cpu, node in zip(found, nodes, strict=True)]
    return found


def _units(amount: float) -> int:
    """Returns an amount in Ray's units, since of floating-point numbers a tenth fits into 1 only nine times."""
    return max(round(amount * UNITS), 1)
