"""`ray job submit` to a head with token authentication runs a study with the submitted code."""

import os
import shutil
import subprocess
from pathlib import Path

import pandas
import pytest
from heads import running_head

ROOT = Path(__file__).parents[1]

MARK = """

_{name} = {name}


def {name}(*arguments, **named):
    from pathlib import Path

    Path({folder!r}, "{name}").write_text(__file__)
    return _{name}(*arguments, **named)
"""


@pytest.fixture(scope="module")
def head():
    with running_head() as started:
        yield started


@pytest.fixture
def tree(tmp_path):
    """This tree as a user has it, with results and an environment in it that must not travel."""
    copy = tmp_path / "tree"
    kept = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=kept)
    for name in (".git/objects/pack", ".venv-real/lib", "runs/ray"):
        (copy / name).mkdir(parents=True)
        (copy / name / "large").write_bytes(os.urandom(2**20))
    (copy / ".venv-real").rename(copy.parent / "venv")
    (copy / ".venv").symlink_to(copy.parent / "venv")
    return copy


def mark(tree, seen, module, function):
    """Has a function of the tree's library leave a file that says where it was run from."""
    path = tree / "platform" / "kiloseg" / f"{module}.py"
    assert f"def {function}(" in path.read_text()
    path.write_text(path.read_text() + MARK.format(name=function, folder=str(seen)))


def flags(squares, runs):
    values = {
        "data.path": squares,
        "data.crop": 64,
        "data.loader-workers": 0,
        "model.backbone": "test_resnet",
        "model.weights": "none",
        "trainer.steps": 2,
        "trainer.batch-size": 8,
        "trainer.validate-every": 1,
        "optimizer.warmup-steps": 0,
        "num-trials": 1,
        "runs": runs,
    }
    return [word for name, value in values.items() for word in (f"--{name}", value)]


@pytest.mark.timeout(300)
def test_a_job_runs_the_code_that_was_submitted(head, tree, squares, tmp_path):
    """Logs and exit codes come back, of a study that succeeds and of one that would lose its results."""
    seen = tmp_path / "seen"
    seen.mkdir()
    roles = {"cluster": "start_ray", "trial": "run_trial", "train": "train"}  # driver, Tune's actor, Train's worker
    for module, function in roles.items():
        mark(tree, seen, module, function)
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
        timeout=280,
        check=False,
    )
    assert refused.wait(60) == 1
    assert "/runs' goes when this job is over; give --runs a folder" in (tmp_path / "refused.log").read_text()

    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2/2  val/miou" in done.stdout
    assert "best: trial" in done.stdout
    (folder,) = (tmp_path / "runs" / "studies").iterdir()
    assert list(pandas.read_csv(folder / "trials.csv")["outcome"]) == ["finished"]

    packages = head.session.resolve() / "runtime_resources"
    for module, function in roles.items():
        origin = Path((seen / function).read_text()).resolve()
        assert origin.is_relative_to(packages), f"kiloseg.{module} ran from {origin}"

    (uploaded,) = (packages / "working_dir_files").glob("_ray_pkg_*/")
    assert {"experiments", "platform", "datasets"} <= {path.name for path in uploaded.iterdir()}
    assert not {".git", ".venv", "runs"} & {path.name for path in uploaded.iterdir()}
    assert sum(path.stat().st_size for path in uploaded.rglob("*") if path.is_file()) < 3 * 2**20


def test_a_head_takes_no_job_without_its_token(head):
    assert head.status("/api/jobs/", head.token) == 200
    assert head.status("/api/jobs/", None) == 401
    assert head.status("/api/jobs/", "0" * 64) in (401, 403)
    assert head.dashboard.startswith("http://127.0.0.1:")
