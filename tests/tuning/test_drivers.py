"""Two drivers of one search as a user starts them, each with a Ray of its own; one of them is killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
from mlflow import MlflowClient
from scripts import quick_search

from kiloseg.tuning.summary import TABLE

ROOT = Path(__file__).parents[2]
TRIALS = 3


def command(squares, runs, *more):
    flags = {
        "trainer.steps": 8,
        "trainer.validate-every": 8,
        "num-trials": TRIALS,
        "max-concurrent": 1,
        "share": "mine",
    }
    script = str(ROOT / "experiments" / "tune_embed_dim.py")
    return [sys.executable, script, *quick_search(squares, runs, flags), "--no-early-stopping", *more]


@pytest.fixture
def started(tmp_path):
    """Starts drivers, and ends those that are left with what they started."""
    processes = []

    def start(log, words):
        with log.open("w") as file:
            processes.append(subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(log, text, process, seconds=600):
    deadline = time.monotonic() + seconds
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, f"{text!r} did not come:\n{log.read_text()}"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_drivers_share_a_search_and_one_of_them_dies(squares, tmp_path, started):
    """Both by the same command; what --resume continues is the one that died, although the other began later."""
    runs = tmp_path / "runs"
    logs = {name: tmp_path / f"{name}.log" for name in ("one", "two")}
    one = started(logs["one"], command(squares, runs))
    until(logs["one"], "starts (2 of", one)
    os.killpg(one.pid, signal.SIGKILL)
    one.wait()
    two = started(logs["two"], command(squares, runs))
    assert two.wait(900) == 0, logs["two"].read_text()
    assert "of which have not ended yet" in logs["two"].read_text(), "the dead driver keeps what it began"
    again = started(logs["one"], command(squares, runs, "--resume"))
    assert again.wait(900) == 0, logs["one"].read_text()

    tables = {
        folder.name: pandas.read_csv(folder / TABLE, dtype={"trial": str}) for folder in (runs / "studies").iterdir()
    }
    assert len(tables) == 2, "the dead driver's study was resumed"
    both = pandas.concat(tables.values())
    assert len(both) == both["trial"].nunique() == TRIALS, "the trials of both together"
    assert set(both["outcome"]) == {"finished"}
    settings = ["model.embed_dim", "loss.negatives.kind", "loss.temperature", "optimizer.lr"]
    assert not both[settings].duplicated().any(), both[settings]
    assert min(map(len, tables.values())) >= 1

    study_id, table = max(tables.items(), key=lambda found: found[1]["val/miou"].max())
    best = table.loc[table["val/miou"].idxmax()]
    said = logs["one"].read_text()
    assert f"shared study mine in {runs}/shared/mine.journal: {TRIALS} trials (" in said
    assert f"best of all drivers: trial {best['trial']} of study {study_id}, val/miou" in said
    journal = (runs / "shared" / "mine.journal").read_text().splitlines()
    assert all(json.loads(line) for line in journal)
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    tracked = client.search_runs([client.get_experiment_by_name("tune_embed_dim").experiment_id])
    assert best["trial"] in {run.data.tags.get("shared.best.trial") for run in tracked}
    third = subprocess.run(command(squares, runs), capture_output=True, text=True, check=False, timeout=400)
    assert third.returncode != 0 and f"has its {TRIALS} trials already, of all drivers together" in third.stderr
    assert len(list((runs / "studies").iterdir())) == 2
