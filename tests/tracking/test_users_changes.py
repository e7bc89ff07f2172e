"""What users change under MLflow: a folder of runs that moved, and runs and experiments that they deleted."""

import os
import shlex
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kiloseg.tracking.advice import not_opened
from kiloseg.tracking.checkpoints import checkpoint_of_run, checkpoint_of_study
from kiloseg.tracking.delivery import Delivery
from kiloseg.tracking.rehoming import rehome
from kiloseg.tracking.runs import DeletedError, Tracker


def recorded(runs, experiment="my study", file="best"):
    """A run with an artifact, as a study leaves it."""
    tracker = Tracker.open(experiment, runs)
    run = tracker.study_run("first", {"trainer.output": str(runs / "train")}, {})
    checkpoint = runs / "step-00000001.pt"
    checkpoint.write_bytes(b"checkpoint")
    run.log_file(checkpoint, file)
    run.end("FINISHED")
    return run


def artifacts(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_folder_of_runs_may_move(tmp_path, how):
    old, new = tmp_path / "old runs", tmp_path / "new runs"
    run = recorded(old)
    (old / "train").mkdir()
    (old / "train" / "step-00000002.pt").write_bytes(b"of the output")
    before = artifacts(old / "artifacts")
    (shutil.move if how == "moved" else shutil.copytree)(old, new)
    found = checkpoint_of_study("my study", new)
    assert Path(found).read_bytes() == b"checkpoint"
    again = Tracker.open("my study", new).study_run("second", {}, {})
    again.log_file(new / "step-00000001.pt", "best")
    assert len(artifacts(new / "artifacts")) == len(before) + 1, "new ones go to the new place"
    if how == "moved":
        assert not old.exists(), "and not to the old one, made anew"
    else:
        assert artifacts(old / "artifacts") == before
    client = MlflowClient(f"sqlite:///{new}/mlflow.db")
    assert [item.path for item in client.list_artifacts(run.run_id, "best")] == ["best/step-00000001.pt"]
    assert client.get_run(run.run_id).data.params["trainer.output"] == str(new / "train")
    assert rehome(new / "mlflow.db") == [], "once"


def test_checkpoints_of_a_run_without_artifacts_move_too(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    run = Tracker.open("train", old).study_run("first", {"trainer.output": str(old / "train")}, {})
    (old / "train").mkdir()
    (old / "train" / "step-00000002.pt").write_bytes(b"of the output")
    shutil.move(old, new)
    assert checkpoint_of_run(run.run_id, new) == str(new / "train")


def test_locations_that_users_chose_stay(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    Tracker.open("one", tmp_path / "runs")
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    chosen = {
        name: client.create_experiment(name, location)
        for name, location in {"url": "s3://bucket/artifacts/url", "folder": elsewhere.as_uri()}.items()
    }
    (tmp_path / "runs" / "artifacts" / "url").mkdir(parents=True)
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    rehome(tmp_path / "moved" / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/moved/mlflow.db")
    assert client.get_experiment(chosen["url"]).artifact_location == "s3://bucket/artifacts/url"
    assert client.get_experiment(chosen["folder"]).artifact_location == elsewhere.as_uri()


def test_no_database_is_no_error(tmp_path):
    assert rehome(tmp_path / "mlflow.db") == []
    sqlite3.connect(tmp_path / "mlflow.db").close()
    (tmp_path / "mlflow.db").touch()
    assert rehome(tmp_path / "mlflow.db") == []


def paste(message):
    """Does what a message says: runs its indented line in a shell."""
    (command,) = [line.strip() for line in message.splitlines() if line.startswith("    ")]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    subprocess.run(command, shell=True, check=True, timeout=120, env=environment, capture_output=True)


def test_deleted_experiment_is_refused_and_the_command_restores_it(tmp_path):
    runs = tmp_path / "my runs"
    run = recorded(runs)
    run.tracker.client.delete_experiment(run.tracker.experiment_id)
    with pytest.raises(DeletedError, match="experiment 'my study' was deleted in MLflow") as error:
        Tracker.open("my study", runs)
    paste(str(error.value))
    assert Tracker.open("my study", runs).experiment_id == run.tracker.experiment_id
    assert Tracker.open("another", runs).experiment_id != run.tracker.experiment_id


def test_deleted_run_is_refused_and_the_command_restores_it(tmp_path):
    run = recorded(tmp_path / "my runs")
    assert run.require_active()
    run.tracker.client.delete_run(run.run_id)
    with pytest.raises(DeletedError, match=f"run first .{run.run_id}. was deleted in MLflow") as error:
        run.require_active()
    paste(str(error.value))
    assert run.require_active()


def test_numbers_of_a_run_that_is_deleted_meanwhile_wait_for_it(tmp_path, caplog):
    run = recorded(tmp_path / "runs")
    client = run.tracker.client
    client.delete_run(run.run_id)
    delivery = Delivery(tmp_path / "train", run, alone=True)
    delivery.study.log_metrics({"train/loss": 0.5}, step=1)
    assert not delivery.flush(3)
    assert "the run was deleted in MLflow; its numbers wait in" in caplog.text
    assert run.restore_command() in caplog.text
    client.restore_run(run.run_id)
    assert delivery.flush(30)
    delivery.close()
    assert client.get_run(run.run_id).data.metrics == {"train/loss": 0.5}


def test_damaged_database_is_named_with_what_helps(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(
        ConnectionError, match=r"database .*mlflow.db cannot be opened .* another folder \(--runs\)"
    ) as error:
        Tracker.open("study", tmp_path)
    assert "unset" not in str(error.value), "SQLite is what it is already"
    assert Tracker.open("study", tmp_path / "another").experiment_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ConnectionError, match="set MLFLOW_TRACKING_URI to another database or unset it"):
        Tracker.open("study", tmp_path / "another")


def test_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConnectionError, match=r"cannot be opened .* in a folder that can be written to"):
        Tracker.open("study", tmp_path / "file" / "runs")


def test_command_of_the_ui_can_be_pasted(tmp_path):
    """Also where the folder's name has a space."""
    import shlex

    tracker = Tracker.open("study", tmp_path / "my runs")
    words = shlex.split(tracker.ui_command().splitlines()[0])
    assert Path(words[0]).is_file() and words[1:3] == ["ui", "--backend-store-uri"]
    assert words[3] == tracker.uri


def test_database_of_an_older_version_has_the_command_that_upgrades_it(tmp_path):
    uri = f"sqlite:///{tmp_path}/my runs/mlflow.db"
    error = MlflowException("Detected out-of-date database schema (found version 1, but expected 2). Take a backup")
    message = not_opened(uri, error)
    words = shlex.split(message.splitlines()[1])
    assert Path(words[0]).is_file() and words[1:] == ["db", "upgrade", uri]
    assert "unset" not in message


def test_server_that_does_not_answer_may_be_started_or_left(monkeypatch):
    message = not_opened("http://user:secret@127.0.0.1:9/", MlflowException("no route"))
    assert "start it, correct MLFLOW_TRACKING_URI, or unset it" in message and "secret" not in message
