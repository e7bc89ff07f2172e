"""What a stopped trial held is free for the next one."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas
import pytest
from scripts import quick_search


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_stopped_trials_give_their_cores_back(squares, tmp_path):
    """Also where a cluster that is no more has left its address on this machine, as `ray start` leaves it when it is killed."""
    folder = Path(tempfile.mkdtemp(prefix="ks-"))  # short, since Ray's sockets have their names in it
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text("192.0.2.1:6379")
    flags = {
        "trainer.steps": 12,
        "trainer.validate-every": 4,
        "num-trials": 4,
        "max-concurrent": 1,
        "cpus-per-worker": os.cpu_count(),
        "retries": 0,
    }
    script = Path(__file__).parents[2] / "experiments" / "tune_embed_dim.py"
    environment = {
        "RAY_TMPDIR": str(folder),
        "TMPDIR": str(tmp_path),
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    }
    try:
        done = subprocess.run(
            [sys.executable, str(script), *quick_search(squares, tmp_path / "runs", flags)],
            capture_output=True,
            text=True,
            env=os.environ | environment,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (study,) = (tmp_path / "runs" / "studies").iterdir()
    outcomes = set(pandas.read_csv(study / "trials.csv")["outcome"])
    assert "stopped" in outcomes and outcomes <= {"finished", "stopped"}, done.stdout + done.stderr
