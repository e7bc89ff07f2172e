"""Studies on real Tune that are interrupted and resumed: what Tune itself forgets."""

import datetime
import os
import shutil
import time
from pathlib import Path

import pytest
from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig
from ray.tune.logger import JsonLoggerCallback
from ray.tune.schedulers import ASHAScheduler

from kiloseg.overrides import from_flat
from kiloseg.tuning.ray_workarounds.asha_rungs import Rungs
from kiloseg.tuning.ray_workarounds.retries import Retries
from kiloseg.tuning.ray_workarounds.utc_names import utc
from kiloseg.tuning.ray_workarounds.waiting_for_copies import waiting_for_copies
from kiloseg.tuning.ray_workarounds.whole_files import storage_filesystem
from kiloseg.tuning.results import trial_rows
from kiloseg.tuning.trials import trial_name

pytestmark = pytest.mark.usefixtures("ray_of_the_module")

STEPS = 9


class Interruption(tune.Callback):
    """Of the study, as by Ctrl-C, when a file is there and the state has been copied since. Takes the driver's folder with it,
    as a machine does."""

    def __init__(self, file, logger):
        self.file = file
        self.logger = logger

    def on_step_begin(self, iteration, trials, **info):
        once = self.file.with_name("interrupted")
        if self.file.exists() and not once.exists():
            once.touch()
            self.wait_for_the_copy(Path(trials[-1].local_path).parent, Path(trials[-1].storage.experiment_fs_path))
            for trial in trials:  # closes a file, which nobody does of a study that is interrupted
                self.logger.log_trial_end(trial)
            shutil.rmtree(Path(trials[-1].local_path).parent)
            raise KeyboardInterrupt

    def wait_for_the_copy(self, here, there):
        """Until the storage has all of the study's files as they are here."""
        files = [path.relative_to(here) for path in here.rglob("*") if path.is_file()]
        deadline = time.monotonic() + 60
        while not all((there / path).exists() for path in files) or any(
            (here / path).read_bytes() != (there / path).read_bytes() for path in files
        ):
            assert time.monotonic() < deadline, f"{there} has not what {here} has"
            time.sleep(0.05)


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """Runs a study until `tmp_path / "now"` is there, then to its end in another zone of time; its results."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    monkeypatch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

    def run(trainable, numbers, *callbacks, scheduler=None, retries=0):
        trainable = tune.with_resources(trainable, {"cpu": 0.1})
        logger = JsonLoggerCallback()
        tuner = tune.Tuner(
            trainable,
            param_space={"number": tune.grid_search(numbers)},
            tune_config=TuneConfig(
                metric="val/miou",
                mode="max",
                max_concurrent_trials=1,
                scheduler=scheduler,
                trial_name_creator=trial_name,
                trial_dirname_creator=trial_name,
            ),
            run_config=RunConfig(
                name="study",
                storage_path=str(tmp_path),
                storage_filesystem=storage_filesystem(str(tmp_path)),
                failure_config=FailureConfig(max_failures=retries),
                callbacks=[logger, *callbacks, Interruption(tmp_path / "now", logger)],
                verbose=0,
            ),
        )
        monkeypatch.setenv("TZ", "UTC-9")
        with pytest.raises(KeyboardInterrupt), utc(), waiting_for_copies():
            tuner.fit()
        (before,) = (path.name for path in (tmp_path / "study").glob("experiment_state-*"))
        monkeypatch.setenv("TZ", "UTC+9")
        restored = tune.Tuner.restore(
            str(tmp_path / "study"), trainable, storage_filesystem=storage_filesystem(str(tmp_path))
        )
        with utc(), waiting_for_copies():
            grid = restored.fit()
        (after,) = {path.name for path in (tmp_path / "study").glob("experiment_state-*")} - {before}
        assert after > before, "the newest by name is the newest"
        return grid

    return run


@pytest.fixture
def result():
    """Makes one as trials report them. A function of its own, since trials cannot import this file."""

    def made(step, score, history=(), **more):
        told = [{"step": told_step, "val/miou": told_score} for told_step, told_score in (*history, (step, score))]
        return {"step": step, "val/miou": score, "history": told, "outcome": "finished", "train_s": 0.0, **more}

    return made


def test_trials_are_compared_with_those_before_the_interruption(resumed, result, tmp_path):
    """And not with what the one that was interrupted has at steps to which they have not come yet."""

    def trainable(settings):
        again = (tmp_path / "now").exists() and settings["number"] == 2
        for step in range(5 if again else 1, STEPS + 1):
            if (settings["number"], step) == (2, 5) and not again:
                (tmp_path / "now").touch()
                time.sleep(100)
            tune.report(result(step, step / (100 if settings["number"] == 4 else 10)))

    scheduler = ASHAScheduler(time_attr="step", max_t=STEPS, grace_period=1, reduction_factor=3)
    grid = resumed(trainable, [0, 1, 2, 3, 4], Rungs(scheduler), scheduler=scheduler)
    steps = {each.config["number"]: each.metrics["step"] for each in grid}
    assert steps == {0: STEPS, 1: STEPS, 2: STEPS, 3: STEPS, 4: 1}


def test_best_validation_is_known_that_came_before_the_interruption(resumed, result, tmp_path):
    before = [(1, 0.5), (2, 0.4)]

    def trainable(settings):
        trial = tune.get_context().get_trial_id()
        if not (tmp_path / "again").exists():
            for step, score in before:
                folder = tmp_path / "checkpoints" / f"train-{trial}" / f"checkpoint_00000{step}"
                folder.mkdir(parents=True)
                (folder / f"step-{step:08d}.pt").touch()
                tune.report(result(step, score, checkpoint_path=f"/elsewhere/train-{trial}/checkpoint_00000{step}"))
            (tmp_path / "again").touch()
            (tmp_path / "now").touch()
            time.sleep(100)
        tune.report(result(*before[1], before[:1], resumed_from=2))
        tune.report(result(3, 0.45))

    grid = resumed(trainable, [0])
    assert len(grid[0].metrics_dataframe) == 2, "Ray has forgotten what came before"
    (row,) = trial_rows(grid, from_flat({"trainer.steps": 3}), str(tmp_path / "checkpoints"))
    assert (row.miou, row.last_miou, row.step, row.outcome) == (0.5, 0.45, 3, "finished")
    assert row.checkpoint == str(tmp_path / "checkpoints" / f"train-{row.trial}" / "checkpoint_000001")


@pytest.mark.slow
def test_failures_count_only_where_a_trial_does_not_get_on(resumed, result, tmp_path):
    def trainable(settings):
        attempts = tmp_path / f"attempts-{settings['number']}"
        attempt = len(attempts.read_text()) if attempts.exists() else 0
        attempts.write_text("x" * (attempt + 1))
        if settings["number"] == 2:  # is told to leave, again and again, long before its first validation
            if attempt < 3:
                left = tmp_path / "checkpoints" / f"train-{tune.get_context().get_trial_id()}" / "left"
                left.mkdir(parents=True, exist_ok=True)
                (left / f"step-{attempt + 1:08d}.pt").touch()
                raise RuntimeError("leaves")
            tune.report(result(STEPS, 0.1))
            return
        gets_on = settings["number"] == 0
        if attempt:
            at = attempt if gets_on else 1
            tune.report(result(at, 0.1, resumed_from=at))
        if attempt == 3 and gets_on:
            (tmp_path / "now").touch()
            time.sleep(100)
        if attempt < 5:
            tune.report(result(attempt + 1 if gets_on else 1, 0.1))
            raise RuntimeError("a process was lost")

    grid = resumed(trainable, [0, 1, 2], Retries(str(tmp_path / "checkpoints")), retries=1)
    attempts = {
        each.config["number"]: len((tmp_path / f"attempts-{each.config['number']}").read_text()) for each in grid
    }
    assert [each.error is not None for each in sorted(grid, key=lambda each: each.config["number"])] == [
        False,
        True,
        False,
    ]
    assert attempts == {0: 6, 1: 2, 2: 4}


def test_time_is_told_in_utc_for_a_while(monkeypatch):
    monkeypatch.setenv("TZ", "UTC-9")
    time.tzset()
    hours = datetime.datetime.now() - datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    assert round(hours.total_seconds() / 3600) == 9
    with utc():
        off = datetime.datetime.now() - datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        assert abs(off.total_seconds()) < 60
    assert os.environ["TZ"] == "UTC-9"
    monkeypatch.delenv("TZ")
    with utc():
        pass
    assert "TZ" not in os.environ
