"""One setting at a time: what is asked, and a small ablation on real Ray."""

import itertools
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from mlflow import MlflowClient
from scripts import assert_refused, words_of

from kiloseg.overrides import flatten, override
from kiloseg.presets import PRESETS

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "ablate.py"
ABLATE = runpy.run_path(str(SCRIPT))
EMOJI = override(PRESETS["emoji"].config, {"data.num_classes": 1537})


def command_line(squares, tmp_path, *more):
    flags = {
        "data.path": squares,
        "data.crop": 64,
        "data.val-samples": 6,
        "model.backbone": "test_resnet",
        "model.weights": "none",
        "optimizer.warmup-steps": 0,
        "trainer.steps": 2,
        "trainer.batch-size": 4,
        "runs": tmp_path / "runs",
    }
    return [*words_of(flags), *more]


def run(squares, tmp_path, *more):
    words = command_line(squares, tmp_path, *more)
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


@pytest.mark.parametrize("question", ABLATE["ARMS"])
def test_every_arm_is_a_run_of_its_own(question):
    arms = ABLATE["ARMS"][question]
    runs = [flatten(override(EMOJI, values)) for values in arms.values()]
    assert len(runs) >= 2
    assert all(one != other for one, other in itertools.combinations(runs, 2))


def test_arms_that_need_more_classes_are_left_out(capsys):
    arms = ABLATE["possible"](ABLATE["ARMS"]["negatives"], 40)
    assert "nearest 32" in arms and "random 63" not in arms
    assert "left out, since there are 40 classes:" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_arms(squares, tmp_path):
    names = ("20", "40")
    done = run(squares, tmp_path, "--question", "temperature", "--arms", *names, "--seeds", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs" / "studies").iterdir()
    table = pandas.read_csv(folder / "temperature.csv", dtype={"arm": str})
    assert table["arm"].tolist() == list(names)
    assert (table["steps"] == 2).all() and (table["miou"] > 0).all() and (table["outcome"] == "finished").all()
    assert table["miou"].map("{:.4g}".format).isin(re.findall(r"[\d.]+", done.stdout)).all()
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("ablate").experiment_id
    warmer = client.search_runs([experiment], "tags.question = 'temperature' and params.`loss.temperature` = '40.0'")
    assert len(warmer) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--question", "logit", "--arms", "cosin"), "--arms cosin: expected one or more of 'distance', 'cosine'"),
        (("--question", "embed_dim", "--data.path", ""), "--data.path is missing"),
    ],
)
def test_what_cannot_work_is_refused(squares, tmp_path, words, message):
    assert_refused(SCRIPT, command_line(squares, tmp_path, *words), message)
