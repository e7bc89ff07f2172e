"""A study whose folder of runs was moved goes on there (https://github.com/ray-project/ray/issues/40585)."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from scripts import quick_search

ROOT = Path(__file__).parents[2]


def search(data, runs, *more):
    flags = {"data.val-samples": 4, "model.arch": "fpn", "trainer.steps": 2, "num-trials": 1}
    return subprocess.run(
        [sys.executable, ROOT / "experiments" / "tune_embed_dim.py", *quick_search(data, runs, flags), *more],
        env={name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.slow
def test_study_goes_on_where_its_runs_were_moved(squares, tmp_path):
    first = search(squares, tmp_path / "old", "--no-early-stopping")
    assert first.returncode == 0, first.stdout + first.stderr
    shutil.move(tmp_path / "old", tmp_path / "new runs")
    again = search(squares, tmp_path / "new runs", "--no-early-stopping", "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert not (tmp_path / "old").exists(), "nothing is made anew at the old place"
    client = MlflowClient(f"sqlite:///{tmp_path}/new runs/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name != "Default"]
    assert len(client.search_runs([experiment.experiment_id])) == 2, "the study and its trial, once each"
