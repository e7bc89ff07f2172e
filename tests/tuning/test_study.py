"""A study lets go of everything that it holds, however it ends."""

import json
import threading

import pytest
import ray
from mlflow import MlflowClient

from kiloseg.storage.lease import FILE
from kiloseg.tuning.grid import run_grid
from kiloseg.tuning.study import Study, running_study


def holders():
    return {thread.name for thread in threading.enumerate()} & {"lease", "delivery"}


@pytest.fixture
def study(tmp_path):
    return Study(name="held", runs=str(tmp_path / "runs"))


def status(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("held").experiment_id])
    return run


def test_study_that_ends_well_is_over(study, quick, tmp_path):
    with run_grid(study, quick, [], script="tests", tags={"setting": "none"}) as result:
        assert holders() == {"lease", "delivery"}
        (lease,) = (tmp_path / "runs" / "studies").glob(f"*/{FILE}")
        assert json.loads(lease.read_text())["pid"]
        result.run.log_metrics({"best/miou": 0.5}, step=0)
    assert not holders()
    assert not lease.exists()
    run = status(tmp_path)
    assert (run.info.status, run.data.metrics["best/miou"], run.data.tags["setting"]) == ("FINISHED", 0.5, "none")


@pytest.mark.parametrize(
    ("error", "expected"), [(ValueError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "KILLED")]
)
def test_study_that_is_broken_off_is_let_go(study, quick, tmp_path, error, expected):
    with (
        pytest.raises(type(error)) as raised,
        running_study(study, quick, {}, script="tests", tags={}) as running,
    ):
        running.connect_to_ray()
        assert ray.is_initialized()
        running.delivery.study.log_metrics({"best/miou": 0.25}, step=0)
        running.has_trials = True
        raise error
    assert not ray.is_initialized()
    assert not holders()
    assert not list((tmp_path / "runs" / "studies").glob(f"*/{FILE}"))
    assert status(tmp_path).info.status == expected
    assert status(tmp_path).data.metrics["best/miou"] == 0.25, "what was said is delivered"
    assert any("--resume continues it" in note for note in raised.value.__notes__)


def test_ray_of_the_caller_is_left_to_the_caller(study, quick, monkeypatch):
    calls = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    with running_study(study, quick, {}, script="tests", tags={}) as running:
        running.connect_to_ray()
    assert not calls
