"""What the workers of a trial hold is free as soon as the trial's actor is dead, and not before."""

import time
from types import SimpleNamespace

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from kiloseg.tuning.ray_workarounds.placement_groups import WatchCallback, watched_placement_groups

pytestmark = pytest.mark.usefixtures("ray_of_the_module")


@ray.remote(num_cpus=0)
class Trial:
    """Holds a placement group, as the controller of a trial does for its workers."""

    def __init__(self, name):
        self.callback = WatchCallback(name)

    def start(self):
        group = placement_group([{"CPU": 0.5}])
        assert group.wait(30)
        state = SimpleNamespace(placement_group_handle=SimpleNamespace(placement_group=group))
        self.callback.after_worker_group_start(SimpleNamespace(get_worker_group_state=lambda: state))
        return group.id.hex()

    def poll(self):
        self.callback._written_s = 0.0
        self.callback.after_worker_group_poll_status(None)

    def shut_down(self):
        self.callback.after_worker_group_shutdown(None)

    def work(self, seconds):
        time.sleep(seconds)


def states(*groups):
    table = placement_group_table()
    return [table[group]["state"] for group in groups]


def until(wanted, *groups):
    deadline = time.monotonic() + 30
    while states(*groups) != wanted:
        assert time.monotonic() < deadline, states(*groups)
        time.sleep(0.1)


def test_only_groups_of_dead_trials_are_removed_until_the_end():
    with watched_placement_groups() as name:
        dead, busy, done = (Trial.remote(name) for _ in range(3))
        groups = ray.get([trial.start.remote() for trial in (dead, busy, done)])
        ray.get([dead.poll.remote(), done.shut_down.remote()])
        working = busy.work.remote(5)
        for trial in (dead, done):
            ray.kill(trial)
        until(["REMOVED", "CREATED", "CREATED"], *groups)
        ray.get(working)
        assert states(*groups) == ["REMOVED", "CREATED", "CREATED"], "what was shut down is Ray Train's to remove"
    until(["REMOVED", "REMOVED", "CREATED"], *groups)


def test_a_second_group_takes_the_place_of_the_first():
    with watched_placement_groups() as name:
        trial = Trial.remote(name)
        first = ray.get(trial.start.remote())
        ray.get(trial.shut_down.remote())
        second = ray.get(trial.start.remote())
        ray.kill(trial)
        until(["CREATED", "REMOVED"], first, second)
