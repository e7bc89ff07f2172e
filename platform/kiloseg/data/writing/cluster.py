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
"""Number of tasks given to Ray for each CPU of the cluster: one runs and one waits, so that an autoscaler sees a queue while
the driver holds few results."""

Task = TypeVar("Task", bound=Hashable)
Result = TypeVar("Result")


def on_cluster(
    work: Callable[[Task], Result], tasks: Sequence[Task], *, address: str, code: str
) -> Generator[tuple[Task, Result]]:
    """Runs `work` on each task with one CPU each, and yields tasks with their results as they finish.

    Args:
        work: a picklable function; its data are sent to the cluster once.
        tasks: small objects.
        address: the address for ray.init. If this process is already connected to Ray, that connection is used unchanged
            and stays open; its workers must be able to import `code`, see `environment`.
        code: the name of the module that contains `work`. Its folder is sent to the workers, together with this package.

    Raises:
        ConnectionError: no cluster answers at the address, or it does not accept this process.
        Exception: any exception that `work` raises; running tasks are ended.
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
            ray.shutdown(wait_for_processes=True)


def _connect(address: str, code: str) -> None:
    _check(address)
    try:
        ray.init(address=address, runtime_env=environment(code), logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        if "InvalidAuthToken" in f"{error} {error.__cause__} {error.__context__}":
            reason = "it requires a token"
            remedy = "RAY_AUTH_MODE=token here too, and its token in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"
        else:
            reason = str(error).partition("\n")[0]
            remedy = "auto with a cluster on this machine, or HOST:PORT of the head of one"
        raise ConnectionError(
            f"address = {address!r}: no connection to the cluster ({reason}); expected {remedy}"
        ) from error


def _check(address: str) -> None:
    """Checks that something answers at the address, since Ray itself tries for minutes before it reports that nothing does."""
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
        raise error.cause from error  # the original type and message, not a report about the worker


def environment(code: str) -> dict[str, Any]:
    """Returns a runtime environment for ray.init with this checkout's package and the source root of the module `code`."""
    found: dict[str, Any] = {"py_modules": [str(PACKAGE)]}
    file = getattr(sys.modules.get(code), "__file__", None)
    if code.partition(".")[0] != "kiloseg" and file is not None:
        found["working_dir"] = str(Path(file).resolve().parents[code.count(".")])
    return found
