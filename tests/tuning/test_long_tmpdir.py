"""A study on a local cluster of Ray where TMPDIR is as long as batch jobs make it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import words_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_study_runs_whatever_the_length_of_tmpdir(squares, tmp_path):
    """Sockets of Ray's processes and of the trial's loader processes have paths of at most 107 bytes."""
    folder = tmp_path / ("job" * 30) / "scratch"
    folder.mkdir(parents=True)
    assert len(str(folder)) > 100
    before = set(Path("/tmp").glob("kiloseg-ray-*"))
    flags = {
        "data.path": squares,
        "data.crop": 64,
        "data.loader-workers": 1,
        "data.val-samples": 4,
        "model.arch": "fpn",
        "model.backbone": "test_resnet",
        "model.weights": "none",
        "trainer.steps": 2,
        "trainer.batch-size": 4,
        "optimizer.warmup-steps": 0,
        "num-trials": 1,
        "runs": tmp_path / "runs",
    }
    done = subprocess.run(
        [sys.executable, ROOT / "experiments" / "tune_embed_dim.py", *words_of(flags), "--no-early-stopping"],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AF_UNIX" not in done.stdout + done.stderr
    assert "val/miou" in done.stdout or "mIoU" in done.stdout
    assert set(Path("/tmp").glob("kiloseg-ray-*")) <= before, "short folders are removed"
