"""`ray job submit` to a head with token authentication runs a study with the submitted code."""

import subprocess
from pathlib import Path

import pandas
import pytest
from copies import copy_tree, note_calls, notes
from heads import running_head
from scripts import quick_search

ROLES = {"tuning.cluster": "start_ray", "tuning.trial": "run_trial", "training.loop": "train"}
"""What runs in the driver, in Tune's actor, in Train's worker."""


@pytest.fixture(scope="module")
def head():
    with running_head() as started:
        yield started


def flags(squares, runs):
    return quick_search(squares, runs, {"trainer.steps": 2, "trainer.validate-every": 1, "num-trials": 1})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_runs_the_code_that_was_submitted(head, squares, tmp_path):
    """Logs and exit codes come back, of a study that succeeds and of one that would lose its results."""
    seen = tmp_path / "seen"
    seen.mkdir()
    tree = copy_tree(tmp_path / "tree")
    for module, function in ROLES.items():
        note_calls(tree, module, function, seen)
    script = "experiments/tune_embed_dim.py"
    # Both at once, which on two cores is quicker than one after the other.
    with (tmp_path / "refused.log").open("w") as log:
        refused = subprocess.Popen(
            head.submit(tree, script, "--data.path", squares),
            env=head.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    done = subprocess.run(
        head.submit(tree, script, *flags(squares, tmp_path / "runs")),
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert refused.wait(100) == 1
    assert "/runs' is removed when this job ends; set --runs to a folder" in (tmp_path / "refused.log").read_text()

    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2  val/miou" in done.stdout
    assert "best: trial" in done.stdout
    (folder,) = (tmp_path / "runs" / "studies").iterdir()
    assert list(pandas.read_csv(folder / "trials.csv")["outcome"]) == ["finished"]

    packages = head.session.resolve() / "runtime_resources"
    for function in ROLES.values():
        (note,) = notes(seen, function)
        assert Path(note["file"]).resolve().is_relative_to(packages), f"{function} ran from {note['file']}"

    (uploaded,) = (packages / "working_dir_files").glob("_ray_pkg_*/")
    assert {"experiments", "platform", "datasets"} <= {path.name for path in uploaded.iterdir()}
    assert not {".git", ".venv", "runs"} & {path.name for path in uploaded.iterdir()}
    assert sum(path.stat().st_size for path in uploaded.rglob("*") if path.is_file()) < 3 * 2**20


def test_a_head_takes_no_job_without_its_token(head):
    assert head.status("/api/jobs/", head.token) == 200
    assert head.status("/api/jobs/", None) == 401
    assert head.status("/api/jobs/", "0" * 64) in (401, 403)
    assert head.dashboard.startswith("http://127.0.0.1:")
