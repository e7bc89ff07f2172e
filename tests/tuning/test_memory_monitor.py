"""Kills by Ray's memory monitor: how they are known, whose fault they are, and that a trial is not to blame for a neighbor."""

import pickle
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.tune.experiment import Trial

from kiloseg.tuning.ray_workarounds import memory_monitor
from kiloseg.tuning.ray_workarounds.memory_monitor import (
    ALONE_LIMIT,
    MemoryKillError,
    MemoryKills,
    is_own,
    memory_in_use,
    memory_kill,
    surviving_memory_kills,
    wait_for_memory,
)

MESSAGE = """Task was killed due to the node running low on memory.
Memory on the node (IP: 127.0.0.1, ID: {node}) was 22.50GB used / 23.50GB limit (0.957447), exceeding the threshold of 0.95.
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
100\t18.00\t{largest}
200\t0.90\tray::RayTrainWorker
"""


def message(largest="python neighbor.py", node="abc"):
    return MESSAGE.format(largest=largest, node=node)


def test_kill_is_known_however_it_is_wrapped():
    killed = OutOfMemoryError(message())
    group = WorkerGroupError("rank 0 failed", {0: WorkerHealthCheckFailedError("a poll failed", killed)})
    task = RayTaskError("run_trial", "traceback", group)
    for error in (
        killed,
        group,
        task,
        task.as_instanceof_cause(),
        pickle.loads(pickle.dumps(MemoryKillError(message()))),
    ):
        assert "running low on memory" in memory_kill(error)
    assert memory_kill(RayActorError()) is None
    assert memory_kill(None) is None


def test_message_says_how_much_and_whose_it_was():
    assert memory_in_use(message()) == "22.50 of 23.50 GB in use"
    assert memory_in_use("another form") == "its node was short of memory"
    assert is_own(message("ray::RayTrainWorker.train"))
    assert not is_own(message())
    assert not is_own("another form")


def test_tune_takes_a_kill_for_the_death_of_an_actor(monkeypatch):
    """Without it Tune raises what ends the study."""
    heard = []
    actor = SimpleNamespace(actor_id=1, _on_error=None)
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda tracked, error: heard.append(error))
    manager = RayActorManager(resource_manager=SimpleNamespace())
    monkeypatch.setattr(manager, "_cleanup_actor", lambda tracked_actor: None)
    with pytest.raises(RuntimeError, match="Caught unexpected exception"):
        manager._actor_task_failed(task, OutOfMemoryError(message()))
    with surviving_memory_kills(MemoryKills(end=lambda *_: None, tell=lambda *_: None)):
        manager._actor_task_failed(task, OutOfMemoryError(message()))
    (error,) = heard
    assert isinstance(error, RayActorError) and error.preempted


def trial_of(step=4):
    trial = Trial("a", stub=True, trial_id="one")
    trial.run_metadata.last_result = {"step": step}
    return trial


def test_kill_is_no_failure_of_the_trial(monkeypatch):
    monkeypatch.setattr(Trial, "local_path", None)  # nothing is written
    trial = trial_of()
    kills = MemoryKills(end=lambda *_: None, tell=lambda *_: None)
    with surviving_memory_kills(kills):
        trial.handle_error(OutOfMemoryError(message()))
        assert trial.run_metadata.num_failures == 0
        trial.handle_error(RayActorError())
        assert trial.run_metadata.num_failures == 1
    assert "low on memory" in kills.messages["one"]


@pytest.mark.parametrize("largest", ["ray::RayTrainWorker.train", "python neighbor.py"])
def test_only_a_trial_that_is_too_large_by_itself_ends(monkeypatch, largest):
    ended, said, waited = [], [], []
    monkeypatch.setattr(memory_monitor, "wait_for_memory", waited.append)
    kills = MemoryKills(end=lambda trial, reason: ended.append(reason), tell=lambda trial, text: said.append(text))
    trial = trial_of()
    for _ in range(ALONE_LIMIT + 1):
        kills.record(trial, message(largest))
        kills.on_trial_recover(0, [trial], trial)
    if largest.startswith("python"):
        assert not ended and len(waited) == ALONE_LIMIT + 1
        assert said[0].startswith("lost a process to the memory monitor (22.50 of 23.50 GB in use)")
    else:
        assert len(waited) == ALONE_LIMIT - 1
        assert ended[0] == "the trial by itself exceeds the memory of its node (22.50 of 23.50 GB in use)"


def test_trial_that_gets_on_between_kills_is_not_ended(monkeypatch):
    monkeypatch.setattr(memory_monitor, "wait_for_memory", lambda message: None)
    ended = []
    kills = MemoryKills(end=lambda trial, reason: ended.append(reason), tell=lambda *_: None)
    for step in range(2 * ALONE_LIMIT):
        kills.record(trial_of(step), message("ray::RayTrainWorker"))
        kills.on_trial_recover(0, [], trial_of(step))
    assert not ended


def test_start_waits_until_there_is_memory(monkeypatch):
    free = iter([0.02, 0.04, 0.30])
    asked = []

    def virtual_memory():
        asked.append(next(free))
        return SimpleNamespace(available=asked[-1], total=1.0)

    monkeypatch.setattr(memory_monitor.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(psutil, "virtual_memory", virtual_memory)
    here = SimpleNamespace(get_node_id=lambda: "abc")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    wait_for_memory(message(node="another"))
    assert not asked, "of another machine's memory nothing is known"
    wait_for_memory(message())
    assert asked == [0.02, 0.04, 0.30]
