"""Lets a study survive Ray's memory monitor: trials whose processes it killed start again once there is memory.

Seen on Ray 2.60: when a node is short of memory, whoever uses it, the monitor kills workers. Whatever waits for a killed actor gets
an `OutOfMemoryError`. Tune's actor manager does not expect it and ends the whole study. If a training worker was killed, the
trial fails with a traceback of 60 lines, and the failure counts although the trial did not cause it.

It can go when tests/tuning/test_faults.py::test_neighbor_that_takes_the_memory passes without `surviving_memory_kills`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import ray
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.experiment import Trial

from kiloseg.tuning.reports import STEP

ALONE_LIMIT = 3
"""A trial ends as oom after this many kills at the same step, each while a process of Ray was the largest on its node."""
PATIENCE_S = 600.0
"""How long a trial waits for memory of this machine, in seconds; then it starts again anyway."""
PAUSE_S = 5.0
"""How long a trial waits at least, in seconds, also on other machines, whose free memory is unknown."""
MARGIN = 0.05
"""Share of the memory that must be free beyond the monitor's threshold before a trial starts again."""

_USERS = re.compile(r"^\s*\d+\s+[\d.]+\s+(\S.*)$", re.MULTILINE)
"""A line of the monitor's list of processes, the largest first: process id, GB, command."""
_LIMIT = re.compile(r"Memory on the node \(IP: [^,]*, ID: (\w+)\) was ([\d.]+)GB used / ([\d.]+)GB")

_current: MemoryKills | None = None
"""The callback of the study that this process runs."""


class MemoryKillError(RayActorError):
    """Says that the memory monitor killed a process of a trial. Tune does not count it as a failure, like a preemption."""

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message, preempted=True)

    def __reduce__(self) -> tuple[type[MemoryKillError], tuple[str]]:
        return MemoryKillError, (self.error_msg,)


def memory_kill(error: BaseException | None) -> str | None:
    """Returns the monitor's message if an error, or one that it wraps, comes from a kill by the monitor; else None."""
    seen: list[BaseException | None] = [error]
    for each in seen:
        if isinstance(each, OutOfMemoryError | MemoryKillError):
            return str(each)
        if each is not None:
            wrapped = [each.__cause__, getattr(each, "cause", None), getattr(each, "health_check_failure", None)]
            wrapped += getattr(each, "worker_failures", {}).values()
            wrapped += [getattr(each, name, None) for name in ("controller_failure", "training_failure")]
            seen += [other for other in wrapped if isinstance(other, BaseException) and other not in seen]
    return None


def memory_in_use(message: str) -> str:
    """Returns the memory that a message of the monitor reports, in words."""
    found = _LIMIT.search(message)
    return f"{found[2]} of {found[3]} GB in use" if found else "its node was short of memory"


def is_own(message: str) -> bool:
    """Returns whether the largest process of the node was one of Ray's workers, by a message of the monitor."""
    users = _USERS.findall(message)
    return bool(users) and users[0].startswith("ray::")


class MemoryKills(tune.Callback):
    """Delays trials that were killed for memory until there is some, and ends those that exceed a node by themselves.

    Args:
        end: function of a trial and a reason that makes the trial end as oom at its next start.
        tell: function of a trial and a sentence that shows the sentence to the user.
    """

    def __init__(self, end: Callable[[Trial, str], None], tell: Callable[[Trial, str], None]) -> None:
        global _current
        _current = self
        self.end = end
        self.tell = tell
        self.own: dict[str, list[int]] = {}
        """Steps at which trials were killed while a process of Ray was the largest on their node, by trial id."""
        self.messages: dict[str, str] = {}
        """The monitor's message for each trial that was killed and has not started again, by trial id."""

    def __reduce__(self) -> tuple[Callable[[], MemoryKills | None], tuple[()]]:
        """Unpickles as the callback of the current process, since Tune pickles callbacks with the study."""
        return _of_this_process, ()

    def record(self, trial: Trial, message: str) -> None:
        """Records that the monitor killed a process of a trial."""
        self.messages[trial.trial_id] = message
        if is_own(message):
            self.own.setdefault(trial.trial_id, []).append((trial.last_result or {}).get(STEP, 0))

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Waits for memory before the trial starts again. Workers of other trials train on; their results are read afterwards."""
        message = self.messages.pop(trial.trial_id, None)
        if message is None:
            return
        steps = self.own.get(trial.trial_id, [])
        if len(steps) >= ALONE_LIMIT and len(set(steps[-ALONE_LIMIT:])) == 1:
            self.end(trial, f"the trial by itself exceeds the memory of its node ({memory_in_use(message)})")
            return
        used = memory_in_use(message)
        self.tell(trial, f"lost a process to the memory monitor ({used}); it starts again when there is memory")
        wait_for_memory(message)


def wait_for_memory(message: str) -> None:
    """Waits until the node that a message of the monitor names has free memory, at most `PATIENCE_S`.

    If the node is another machine, whose free memory is unknown, this is only a pause.
    """
    time.sleep(PAUSE_S)
    found = _LIMIT.search(message)
    if not found or found[1] != ray.get_runtime_context().get_node_id():
        return
    threshold = _threshold(message) - MARGIN
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        memory = psutil.virtual_memory()
        if 1 - memory.available / memory.total < threshold:
            return
        time.sleep(1.0)


def _threshold(message: str) -> float:
    found = re.search(r"threshold of (\d*\.?\d+)", message)
    return float(found[1]) if found else 0.95


@contextlib.contextmanager
def surviving_memory_kills(kills: MemoryKills) -> Iterator[None]:
    """Makes Tune treat a kill by the memory monitor, inside the `with` block, as the preemption of a trial."""
    task_failed, handle_error = RayActorManager._actor_task_failed, Trial.handle_error

    def task_failed_or_killed(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        message = str(exception) if isinstance(exception, OutOfMemoryError) else None
        task_failed(manager, tracked_actor_task, exception if message is None else MemoryKillError(message))

    def handle_error_or_kill(trial: Trial, exc: Exception | None = None) -> None:
        message = memory_kill(exc)
        if message is not None:
            kills.record(trial, message)
        handle_error(trial, exc if message is None else MemoryKillError(message))

    RayActorManager._actor_task_failed = task_failed_or_killed
    Trial.handle_error = handle_error_or_kill
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = task_failed
        Trial.handle_error = handle_error


def _of_this_process() -> MemoryKills | None:
    return _current
