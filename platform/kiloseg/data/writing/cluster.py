"""Spreads the shards of a build over a Ray cluster."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Generator, Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

PACKAGE = Path(__file__).parents[2]

TASKS_PER_CPU = 2
"""Tasks handed to Ray for each CPU of the cluster: one that runs and one that waits, so that an autoscaler sees a queue
while the driver holds few results."""

Task = TypeVar("Task", bound=Hashable)
Result = TypeVar("Result")


def on_cluster(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, address: str, code: str
) -> Generator[tuple[Task, Result]]:
    """Runs `work` on each task, a CPU each, and yields tasks with their results as they finish.

    Args:
        work: picklable; what it carries goes to the cluster once.
        tasks: small.
        address: as ray.init takes it. A Ray that this process is already connected to is used instead, as it is, and
            stays; its workers must be able to import `code`, for which see `environment`.
        code: name of the module that `work` is from; its folder goes to the workers, with this package.

    Raises:
        ConnectionError: no cluster answers there, or it does not take this process.
        Exception: what `work` raises; tasks that run are ended.
    """
    connected = ray.is_initialized()
    if not connected:
        _connect(address, code)
    running: dict[ray.ObjectRef, Task] = {}
    try:
        remote = ray.remote(num_cpus=1)(_call)
        shared = ray.put(work)
        left = iter(tasks)
        while True:
            room = TASKS_PER_CPU * max(int(ray.cluster_resources().get("CPU", 0)), 1)
            while len(running) < room and (task := next(left, None)) is not None:
                running[remote.remote(shared, task)] = task
            if not running:
                return
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(ready), _result(ready)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if not connected:
            ray.shutdown()


def _connect(address: str, code: str) -> None:
    _check(address)
    try:
        ray.init(address=address, runtime_env=environment(code), logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        if "InvalidAuthToken" in f"{error} {error.__cause__} {error.__context__}":
            reason = "it asks for a token"
            mend = "RAY_AUTH_MODE=token here too, and its token in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
        else:
            reason = str(error).partition("\n")[0]
            mend = "auto with a cluster on this machine, or HOST:PORT of the head of one"
        raise ConnectionError(
            f"address = {address!r}: no connection to the cluster ({reason}); expected {mend}"
        ) from error


def _check(address: str) -> None:
    """Ray itself asks for minutes before it says that nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ConnectionError(
            f"address = {address!r}: no cluster answers ({error}); expected auto, or HOST:PORT of the head of a Ray cluster"
        ) from error


def _call(work: Callable[[Any], Any], task: Any) -> Any:
    return work(task)


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error  # its own kind and message, not a report on the worker


def environment(code: str) -> dict[str, Any]:
    """A runtime environment for ray.init: this checkout's package, and the source root of the module `code`."""
    found: dict[str, Any] = {"py_modules": [str(PACKAGE)]}
    file = getattr(sys.modules.get(code), "__file__", None)
    if code.partition(".")[0] != "kiloseg" and file is not None:
        found["working_dir"] = str(Path(file).resolve().parents[code.count(".")])
    return found
