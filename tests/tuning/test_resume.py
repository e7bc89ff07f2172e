"""The script of a study is killed and started again with --resume."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from mlflow import MlflowClient
from scripts import quick_search, said

ROOT = Path(__file__).parents[2]


def command(squares, runs, *more):
    flags = {"trainer.steps": 8, "trainer.validate-every": 4, "num-trials": 2, "max-concurrent": 1}
    return [
        sys.executable,
        str(ROOT / "experiments" / "tune_embed_dim.py"),
        *quick_search(squares, runs, flags),
        "--no-early-stopping",
        *more,
    ]


def until(path, text, seconds):
    """Waits for a line of output; returns what came so far."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        output = path.read_text()
        if text in output:
            return output
        time.sleep(0.2)
    raise AssertionError(f"{text!r} did not come in {seconds} s:\n{path.read_text()}")


@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    "snapshot_s", [pytest.param(1, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.faults)]
)
def test_killed_study_goes_on(squares, tmp_path, snapshot_s, monkeypatch):
    """Also where Tune had not yet written down that the first trial was over, and starts it again."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", str(snapshot_s))
    runs, log = tmp_path / "runs", tmp_path / "first.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(squares, runs), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        until(log, "starts (2 of 2)", 200)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    first = [line.split()[3] for line in log.read_text().splitlines() if "step 8/8" in line]
    assert len(first) == 1, "one trial had ended"

    second = subprocess.run(
        command(squares, runs, "--resume"), capture_output=True, text=True, timeout=300, check=False
    )
    assert second.returncode == 0, second.stdout + second.stderr
    if snapshot_s == 1:
        assert f"trial {first[0]}  starts" not in second.stdout, "a finished trial is not run again"
    (folder,) = (runs / "studies").iterdir()
    table = pandas.read_csv(folder / "trials.csv", dtype={"trial": str})
    assert len(table) == 2
    assert set(table["outcome"]) == {"finished"}
    assert first[0] in set(table["trial"])

    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("tune_embed_dim")
    tracked = client.search_runs([experiment.experiment_id])
    trials = [run.data.tags["kiloseg.trial"] for run in tracked if "kiloseg.trial" in run.data.tags]
    if snapshot_s == 1:
        assert sorted(trials) == sorted(table["trial"]), "no trial has two runs"
        assert {run.info.status for run in tracked} == {"FINISHED"}
    else:  # Tune forgot the trial that had begun after its last snapshot; its run stays, beside one for each other trial
        assert len(trials) == len(set(trials)) == 3
        assert set(table["trial"]) < set(trials)
    (parent,) = (run for run in tracked if "kiloseg.trial" not in run.data.tags)
    assert parent.data.metrics["best/miou"] == pytest.approx(table["val/miou"].max(), rel=1e-6)


def test_help_is_useful():
    code, output, _ = said(ROOT / "experiments" / "tune_embed_dim.py", "--help")
    assert code == 0
    for text in (
        "--num-trials",
        "--max-concurrent",
        "--resume",
        "--data.path",
        "--loss.negatives.kind",
        "experiments/LOG.md",
    ):
        assert text in output
