"""A study lets go of everything that it holds, however it ends."""

import dataclasses
import json
import re
import shlex
import shutil
import threading

import pytest
import ray
import tyro
from mlflow import MlflowClient

from kiloseg.config import Config
from kiloseg.data.index import read_index, write_index
from kiloseg.overrides import flatten, override
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import open_folder
from kiloseg.storage.lease import FILE
from kiloseg.tuning.grid import run_grid
from kiloseg.tuning.identity import check_same_study, write_plan
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


def test_split_without_labels_is_refused_before_a_study_begins(study, quick, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(quick.data.path, data)
    rows = read_index(data).to_pylist()
    for row in rows:
        if row["split"] == "val":
            row["class_ids"], row["class_pixels"] = [], []
    write_index(data, rows)
    base = override(quick, {"data.path": str(data)})
    with (
        pytest.raises(DataError, match=r"split 'val' .* there is nothing to validate"),
        running_study(study, base, {}, script="tests", tags={}),
    ):
        pytest.fail("it began")
    assert not (tmp_path / "runs").exists()


def test_ray_of_the_caller_is_left_to_the_caller(study, quick, monkeypatch):
    calls = []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    with running_study(study, quick, {}, script="tests", tags={}) as running:
        running.connect_to_ray()
    assert not calls


def test_flags_of_the_study_to_resume_can_be_pasted(quick, tmp_path):
    """Also where a value has a space, or is several words."""
    place = open_folder(tmp_path)
    begun = flatten(override(quick, {"model.weights": "/my models/it's.pt", "loss.temperature": 7.0}))
    plan = {"data digest": "0", "workers": 1}
    write_plan(begun | plan, place)
    with pytest.raises(ValueError, match="which is another study") as error:
        check_same_study("held-1", flatten(quick) | plan, place)
    flags = re.search(r"give its flags \((.*)\), or start one", str(error.value))[1]
    assert shlex.split(flags) == ["--model.weights", "/my models/it's.pt", "--loss.temperature", "7.0"]


@pytest.mark.parametrize(
    "settings",
    [
        {"trainer.compile": True, "model.weights": "/my models/it's.pt"},
        {"optimizer.lr": 0.5, "data.num_classes": None, "data.scale_max": 3.0},
        {"data.num_classes": 5, "loss.temperature": 7.5, "trainer.channels_last": False},
    ],
)
def test_flags_of_the_study_to_resume_give_its_settings(quick, tmp_path, settings):
    """The advice is followed: the command line with these flags has the settings of the study."""
    base = override(quick, {"data.num_classes": 4, "trainer.compile": False})
    for mine, theirs in ((base, override(base, settings)), (override(base, settings), base)):
        place = open_folder(tmp_path)
        plan = {"data digest": "0", "workers": 1}
        write_plan(flatten(theirs) | plan, place)
        with pytest.raises(ValueError, match="which is another study") as error:
            check_same_study("held-1", flatten(mine) | plan, place)
        flags = re.search(r"give its flags \((.*)\), or start one", str(error.value))[1]
        found = tyro.cli(Config, default=mine, args=shlex.split(flags))
        check_same_study("held-1", flatten(found) | plan, place)


def test_study_whose_trials_share_gpus_is_not_resumed_with_other_shares(quick, tmp_path):
    """Tune would go on with the number of trials at once that it has saved. A study from before shares had none."""
    place = open_folder(tmp_path)
    plan = flatten(quick) | {"data digest": "0", "workers": 1}
    write_plan(plan | {"pack": "80GiB"}, place)
    with pytest.raises(ValueError, match=r"which is another study \(pack was '?80GiB'?, is None\)"):
        check_same_study("held-1", plan | {"pack": None}, place)
    write_plan(plan, place)
    check_same_study("held-1", plan | {"pack": None}, place)


def test_resumption_that_is_refused_is_not_advised_again(study, quick, monkeypatch):
    monkeypatch.setattr("kiloseg.tuning.study.newest_id", lambda storage, name: f"{name}-20261128-000000")
    with (
        pytest.raises(DataError, match="start it again without --resume") as error,
        running_study(dataclasses.replace(study, resume=True), quick, {}, script="tests", tags={}),
    ):
        raise DataError("it has no state to continue from; start it again without --resume")
    assert error.value.__notes__ == ["the results of study held-20261128-000000 are kept"]
