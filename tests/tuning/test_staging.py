"""What trials leave in the folder that Ray copies to a study's storage with every state."""

from pathlib import Path

import pytest
from ray import tune
from ray.tune import RunConfig, TuneConfig
from ray.tune.logger import JsonLoggerCallback

from kiloseg.tuning.ray_workarounds.copied_files import CopiedFiles
from kiloseg.tuning.ray_workarounds.waiting_for_copies import waiting_for_copies
from kiloseg.tuning.ray_workarounds.whole_files import storage_filesystem

pytestmark = pytest.mark.usefixtures("ray_of_the_module")

TRIALS = 4


class Left(tune.Callback):
    """Notes what of the trials before is there when one starts, and how often the storage had not all of the last state."""

    def __init__(self):
        self.folders = []
        self.states = []

    def on_step_begin(self, iteration, trials, **info):
        if iteration:  # a state has been written
            here = Path(trials[0].local_path).parent
            there = Path(trials[0].storage.experiment_fs_path)
            (name,) = (path.name for path in here.glob("experiment_state-*"))
            self.states.append((here / name).read_bytes() == (there / name).read_bytes())

    def on_trial_start(self, iteration, trials, trial, **info):
        self.folders.append([other.config["number"] for other in trials if Path(other.local_path).exists()])


def run(tmp_path, monkeypatch, period_s):
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", str(period_s))
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    left = Left()

    def trainable(settings):
        tune.report({"score": settings["number"]})
        if settings["number"] == 1:
            raise RuntimeError("the second trial fails")

    tuner = tune.Tuner(
        trainable,
        param_space={"number": tune.grid_search(list(range(TRIALS)))},
        tune_config=TuneConfig(max_concurrent_trials=1),
        run_config=RunConfig(
            name="study",
            storage_path=str(tmp_path),
            storage_filesystem=storage_filesystem(str(tmp_path)),
            callbacks=[JsonLoggerCallback(), CopiedFiles(), left],
            verbose=0,
        ),
    )
    with waiting_for_copies():
        grid = tuner.fit()
    if period_s == 0:
        assert len(left.states) > 10
        assert all(left.states), "a state is copied whole before the next is written"
    return grid, left.folders


def test_what_the_storage_has_goes_and_results_stay(tmp_path, monkeypatch):
    grid, left = run(tmp_path, monkeypatch, 0)
    assert [result.metrics["score"] for result in grid] == list(range(TRIALS))
    assert [list(result.metrics_dataframe["score"]) for result in grid] == [[number] for number in range(TRIALS)]
    assert [result.error is not None for result in grid] == [False, True, False, False]
    assert "the second trial fails" in str(grid[1].error)
    assert not {0, 1} & set(left[-1])


def test_what_has_not_been_copied_stays(tmp_path, monkeypatch):
    grid, left = run(tmp_path, monkeypatch, 1000)
    assert left[-1] == list(range(TRIALS))
    assert [result.metrics["score"] for result in grid] == list(range(TRIALS))
