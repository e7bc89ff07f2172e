"""Frees the CPUs and GPUs that the workers of a dead trial held.

Seen on Ray 2.60: the placement group of a trial's workers outlives the actor that created it, until the whole job ends. Ray
starts a process for every trial that removes the group when the actor dies. Here one actor does that for all trials of a
study. It asks the actors themselves, not Ray's dashboard.

It can go when tests/tuning/test_cores.py::test_stopped_trials_give_their_cores_back passes without `WatchCallback`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
"""Seconds between two looks at all trials."""
REPEAT_S = 5.0
"""Seconds after which a trial names its placement group again, in case that the actor was restarted."""


class PlacementGroups:
    """Removes the placement group of a trial when the trial's actor dies. Runs as an actor; see `watched_placement_groups`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[Any, PlacementGroup]] = {}
        self._answers: dict[str, ray.ObjectRef] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def hold(self, trial: str, actor: Any, group: PlacementGroup | None) -> None:
        """Sets the placement group to remove when a trial's actor dies.

        Args:
            trial: id of the actor.
            actor: its handle.
            group: the placement group of its workers; None: it has none any more.
        """
        with self._lock:
            self._held.pop(trial, None)
            if group is not None:
                self._held[trial] = (actor, group)

    def remove_all(self) -> None:
        """Removes the placement groups of all trials."""
        with self._lock:
            for _, group in self._held.values():
                remove_placement_group(group)
            self._held.clear()

    def _watch(self) -> None:
        while True:
            time.sleep(INTERVAL_S)
            with self._lock:
                held = dict(self._held)
            for trial, (actor, group) in held.items():
                try:
                    if self._is_dead(trial, actor):
                        remove_placement_group(group)
                        self.hold(trial, actor, None)
                except Exception:
                    logger.exception("actor %s is checked again", trial)
            for trial in set(self._answers) - set(held):
                del self._answers[trial]

    def _is_dead(self, trial: str, actor: Any) -> bool:
        """Returns whether an actor is dead. A call to one that is busy stays open until it is free or dies."""
        if trial not in self._answers:
            self._answers[trial] = actor.__ray_ready__.remote()
        ready, _ = ray.wait([self._answers[trial]], timeout=0)
        if not ready:
            return False
        del self._answers[trial]
        try:
            ray.get(ready[0])
        except ActorUnavailableError:  # its node does not answer at the moment
            return False
        except RayActorError:
            return True
        return False


@contextlib.contextmanager
def watched_placement_groups() -> Iterator[str]:
    """Starts the actor for the trials of a study for the duration of a `with` block; the value is the actor's name.

    No trial may run when the block ends without an error: all groups that are left are removed.
    """
    name = f"placement-groups-{uuid.uuid4().hex}"
    watch = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(PlacementGroups).options(name=name).remote()
    yield name
    with contextlib.suppress(RayError, TimeoutError):  # Ray removes the groups when it ends
        ray.get(watch.remove_all.remote(), timeout=10)
        ray.kill(watch)


class WatchCallback(WorkerGroupCallback):
    """Names the placement group of the trial in this process to the actor of `watched_placement_groups`.

    Args:
        name: name of the actor.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._group: PlacementGroup | None = None
        self._sent_s = 0.0

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Names a new placement group."""
        self._group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._send()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Names it again every few seconds."""
        if time.monotonic() - self._sent_s > REPEAT_S:
            self._send()

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Tells the actor that Ray Train has removed the placement group."""
        self._group = None
        self._send()

    def _send(self) -> None:
        self._sent_s = time.monotonic()
        context = ray.get_runtime_context()
        try:
            watch = ray.get_actor(self._name)
        except ValueError as error:
            logger.warning("if this trial dies, its CPUs and GPUs stay reserved until the study ends: %s", error)
            return
        watch.hold.remote(context.get_actor_id(), context.current_actor, self._group)
