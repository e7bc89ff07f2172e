"""Frees the CPUs and GPUs that the workers of a dead trial held.

Seen on Ray 2.60: the placement group of a trial's workers outlives the actor that created it, until the whole job ends. Ray
starts a process for every trial that removes the group when the actor dies. Here a thread of the study's driver does that for
all trials. Trials write their groups to the key-value store of Ray's head, not to an actor, because Ray's memory monitor, which
kills trials, also killed that actor, and nothing knew the groups any more: trials that started again waited for their CPUs forever.

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
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

logger = logging.getLogger(__name__)

INTERVAL_S = 0.5
"""Seconds between two looks at all trials."""
REPEAT_S = 5.0
"""Seconds after which a trial writes its placement group again, in case that Ray's head has lost what it had stored."""


class PlacementGroups:
    """Removes the placement group of a trial when the trial's actor dies; see `watched_placement_groups`.

    Args:
        name: what the keys of the trials start with.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._answers: dict[bytes, ray.ObjectRef] = {}
        self._told: set[bytes] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Ends the thread and removes the placement groups of all trials, unless Ray's head does not answer."""
        self._ended.set()
        self._thread.join(timeout=10)
        if self._thread.is_alive():
            return
        for key in self._keys():
            with contextlib.suppress(Exception):  # one that cannot be read keeps no other
                self._remove(key)

    def _keys(self) -> list[bytes]:
        return list(_internal_kv_list(self._name))

    def _watch(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            try:
                keys = self._keys()
            except Exception as error:
                self._tell(b"", error)
                continue
            for key in keys:
                try:
                    if self._is_dead(key):
                        self._remove(key)
                except Exception as error:
                    self._tell(key, error)
            for key in set(self._answers) - set(keys):
                del self._answers[key]

    def _tell(self, key: bytes, error: Exception) -> None:
        """Logs what keeps a trial from being checked, once, since it is checked again after a moment."""
        if key not in self._told:
            self._told.add(key)
            logger.warning("what a dead trial holds is freed later: %s", error)

    def _is_dead(self, key: bytes) -> bool:
        """Returns whether the actor of a trial is dead. A call to one that is busy stays open until it is free or dies."""
        if key not in self._answers:
            stored = _internal_kv_get(key)
            if stored is None:  # the trial has just removed its group
                return False
            actor, _ = cloudpickle.loads(stored)
            self._answers[key] = actor.__ray_ready__.remote()
        ready, _ = ray.wait([self._answers[key]], timeout=0)
        if not ready:
            return False
        del self._answers[key]
        try:
            ray.get(ready[0])
        except ActorUnavailableError:  # its node does not answer at the moment
            return False
        except (RayActorError, OutOfMemoryError):  # the latter if the memory monitor killed it
            return True
        return False

    def _remove(self, key: bytes) -> None:
        stored = _internal_kv_get(key)
        if stored is not None:
            _, group = cloudpickle.loads(stored)
            remove_placement_group(group)
            _internal_kv_del(key)


@contextlib.contextmanager
def watched_placement_groups() -> Iterator[str]:
    """Watches the trials of a study for the duration of a `with` block; the value is the name that `WatchCallback` needs.

    When the block ends, all groups that are left are removed, and with them what runs in them: after an interruption, trials that
    have not ended. Not for drivers that are clients of Ray (ray://), which cannot call the actors of others.
    """
    watch = PlacementGroups(name := f"placement-groups-{uuid.uuid4().hex}-")
    try:
        yield name
    finally:
        with contextlib.suppress(Exception):  # Ray removes the groups when the driver's connection ends
            watch.end()


class WatchCallback(WorkerGroupCallback):
    """Writes down the placement group of the trial in this process for `watched_placement_groups`.

    Args:
        name: the value of that block.
    """

    def __init__(self, name: str) -> None:
        self._key = name + ray.get_runtime_context().get_actor_id()
        self._group: PlacementGroup | None = None
        self._written_s = 0.0

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Writes down a new placement group."""
        self._group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        self._write()

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Writes it down again every few seconds."""
        if time.monotonic() - self._written_s > REPEAT_S:
            self._write()

    def after_worker_group_shutdown(self, worker_group_context: Any) -> None:
        """Removes what was written: Ray Train has removed the placement group."""
        self._group = None
        self._write()

    def _write(self) -> None:
        self._written_s = time.monotonic()
        try:
            if self._group is None:
                _internal_kv_del(self._key)
            else:
                actor = ray.get_runtime_context().current_actor
                _internal_kv_put(self._key, cloudpickle.dumps((actor, self._group)), overwrite=True)
        except Exception as error:  # the trial itself does not depend on it, and it is written again
            logger.warning("if this trial dies now, its CPUs and GPUs stay reserved until the study ends: %s", error)
