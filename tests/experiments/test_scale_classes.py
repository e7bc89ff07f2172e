"""The grid over heads and class counts, on real Ray, read back from MLflow and from its files."""

import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from conftest import write_dataset
from mlflow import MlflowClient
from scripts import assert_refused, words_of

from kiloseg.memory import largest_batch, plan
from kiloseg.overrides import head_overrides, override
from kiloseg.presets import PRESETS
from kiloseg.tuning.study import Study

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "scale_classes.py"
QUICK = {
    "data.crop": 64,
    "data.loader-workers": 0,
    "data.val-samples": 6,
    "model.arch": "fpn",
    "model.backbone": "test_resnet",
    "model.weights": "none",
    "model.embed-dim": 64,
    "optimizer.warmup-steps": 0,
    "trainer.steps": 3,
    "trainer.batch-size": 4,
}


def command_line(squares, tmp_path, *more):
    flags = {"data.path": squares, "runs": tmp_path / "runs", **QUICK}
    return [*words_of(flags), *more]


def run(squares, tmp_path, *more):
    words = command_line(squares, tmp_path, *more)
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


def most_at_once(output):
    """Of trials, by the lines that say that one starts and that it has taken its last step."""
    running, most = set(), 0
    for line in output.splitlines():
        if match := re.match(r"\s*\d+ s  trial (\w+)  (starts|step 3/3)", line):
            (running.add if match[2] == "starts" else running.discard)(match[1])
            most = max(most, len(running))
    return most


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_grid_under_a_budget(squares, tmp_path):
    """A budget in which two images of the embedding head fit and not one of the paper's code, which gathers K x D a pixel."""
    settings = {name.replace("-", "_"): value for name, value in QUICK.items()}
    settings |= {"data.path": str(squares), "data.num_classes": 6, "loss.negatives.count": 5}
    base = override(PRESETS["emoji"].config, settings)
    two = plan(override(base, {**head_overrides("embedding:all"), "trainer.batch_size": 2}))
    official = plan(override(base, {**head_overrides("official"), "trainer.batch_size": 1}))
    assert official > 1.02 * two
    budget = (official + two) / 2
    results = tmp_path / "results.csv"
    asked = (
        "--classes", "3", "6", "--heads", "dense", "embedding:all", "official", "--seeds", "0",
        "--budget", f"{budget:.6f}GiB", "--loss.negatives.count", "5", "--results", str(results), "--max-batch", "8",
        "--max-concurrent", "2",
    )  # fmt: skip
    done = run(squares, tmp_path, *asked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert most_at_once(done.stdout) == 2

    table = pandas.read_csv(results)
    assert list(table.columns) == [
        "setting", "head", "num_classes", "seed", "batch", "steps", "miou", "peak_memory_gib", "images_per_s", "oom",
    ]  # fmt: skip
    assert list(zip(table["head"], table["num_classes"], strict=True)) == [
        (head, count) for head in ("dense", "embedding:all", "official") for count in (3, 6)
    ]
    assert set(table["setting"]) == {"budget"}
    ran = table[table["oom"] == 0].set_index(["head", "num_classes"])
    for head in ("dense", "embedding:all"):
        config = override(base, head_overrides(head))
        assert ran.loc[(head, 6), "batch"] == min(largest_batch(config, budget), 8)
    assert (ran["steps"] == 3).all() and (ran["miou"] > 0).all() and (ran["images_per_s"] > 0).all()
    # What was planned is what was measured.
    assert (ran["peak_memory_gib"] <= budget * 1.01).all()
    no_room = table[(table["head"] == "official") & (table["num_classes"] == 6)].iloc[0]
    assert no_room["oom"] == 1 and no_room["batch"] == 0 and no_room["steps"] == 0 and math.isnan(no_room["miou"])

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("scale_classes").experiment_id
    parent = client.search_runs([experiment], "tags.`kiloseg.study` LIKE 'scale_classes-%'")[0]
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    figures = {
        f"{name}_vs_classes.{kind}" for name in ("miou", "peak_memory_gib", "images_per_s") for kind in ("png", "svg")
    }
    assert artifacts == {"scale_classes.csv", "scale_classes.parquet", *figures}
    cells = client.search_runs([experiment], "tags.setting = 'budget' and metrics.oom >= 0")
    assert len(cells) == 6 and all(cell.data.tags["mlflow.parentRunId"] == parent.info.run_id for cell in cells)
    refused = [cell for cell in cells if cell.data.tags["outcome"] == "oom"]
    assert {cell.data.tags["head"] for cell in refused} == {"official"}
    assert all(cell.data.metrics["oom"] == 1 and cell.info.status == "FAILED" for cell in refused)
    curves = client.search_runs([experiment], "tags.`kiloseg.curve` LIKE '%'")
    assert {curve.info.run_name for curve in curves} == {"dense", "embedding:all", "official"}
    dense = next(curve for curve in curves if curve.info.run_name == "dense")
    for metric in ("miou", "peak_memory_gib", "images_per_s"):
        points = client.get_metric_history(dense.info.run_id, f"{metric}_vs_classes")
        expected = ran.loc["dense"][metric]
        assert {point.step: point.value for point in points} == pytest.approx(dict(expected), rel=1e-4)

    # There is nothing left to do, and nothing is there twice.
    again = run(squares, tmp_path, *asked, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    pandas.testing.assert_frame_equal(pandas.read_csv(results), table)
    assert len(client.search_runs([experiment])) == 1 + len(table) + 3
    assert len(client.get_metric_history(dense.info.run_id, "miou_vs_classes")) == 2
    # Ray would take the rows of this study for those of another.
    other = command_line(squares, tmp_path, *asked, "--batch", "4", "--resume")
    assert_refused(SCRIPT, other, "trials was 5, is 6; setting was 'budget', is 'batch'; ")
    other = command_line(squares, tmp_path, *asked, "--seeds", "0", "1", "--resume")
    assert_refused(SCRIPT, other, "trials was 5, is 10; ")
    # Data may lie elsewhere now, but must be what they were.
    write_dataset(tmp_path / "others", {"train": [13, 9, 10], "val": [5, 6]})
    other = command_line(tmp_path / "others", tmp_path, *asked, "--resume")
    assert_refused(SCRIPT, other, "(data digest was ")


@pytest.mark.timeout(300)
def test_where_nothing_fits_all_cells_are_out_of_memory(squares, tmp_path):
    results = tmp_path / "results.csv"
    results.write_text(
        "setting,head,num_classes,seed,batch,steps,miou,peak_memory_gib,images_per_s,oom\n"
        "budget,dense,3,0,8,3,0.5,0.1,10,0\nbudget,dense,6,0,8,3,0.75,0.1,10,0\nbatch,dense,3,0,8,3,0.25,0.1,10,0\n"
    )
    done = run(
        squares, tmp_path, "--classes", "3", "--heads", "dense", "--seeds", "0", "--budget", "0.0001", "--results", str(results)
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 runs out of memory" in done.stdout
    table = pandas.read_csv(results)
    assert table["setting"].tolist() == ["batch", "budget", "budget"] and table["oom"].tolist() == [0, 1, 0]
    # The curve is of all that is known under this setting.
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("scale_classes").experiment_id
    (curve,) = client.search_runs([experiment], "tags.`kiloseg.curve` = 'dense'")
    points = client.get_metric_history(curve.info.run_id, "miou_vs_classes")
    assert {point.step: point.value for point in points if not math.isnan(point.value)} == {6: 0.75}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--classes", "6", "--results", str(ROOT / "constraints.txt")), "expected setting, head, num_classes, seed, batch"),
        (("--budget", "much"), "--budget 'much': expected an amount such as 24GiB"),
        (("--classes", "64", "64"), "--classes (64, 64): expected at least one, each once"),
        (("--classes", "64", "--batch", "0"), "--batch 0: expected at least 1"),
        (("--classes", "7",), "has only 6 classes"),
        (("--classes", "6", "--heads", "densest"), "model.head = 'densest': expected one of embedding, dense"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(squares, tmp_path, words, message):
    assert_refused(SCRIPT, command_line(squares, tmp_path, *words), message)


def test_a_run_that_was_broken_off_replaces_nothing(tmp_path):
    script = runpy.run_path(str(SCRIPT))
    results = tmp_path / "results.csv"
    header = ",".join(script["COLUMNS"])
    results.write_text(f"{header}\nbudget,dense,3,0,8,3,0.5,0.1,10,0\n")
    rows = [("budget", "dense", 3, 0, 8, 0, None, None, None, 0), ("budget", "dense", 6, 0, 0, 0, None, None, None, 1)]
    table = script["add_to_results"](pandas.DataFrame(rows, columns=list(script["COLUMNS"])), results, ["dense"])
    assert table["miou"].iloc[0] == 0.5 and table["oom"].tolist() == [0, 1]
    assert pandas.read_csv(results)["num_classes"].tolist() == [3, 6]


def test_a_budget_is_of_a_worker_and_of_one_precision(quick, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    script = runpy.run_path(str(SCRIPT))
    base = script["with_precision"](override(quick, {"data.num_classes": None}), Study(name="x"))
    assert base.trainer.precision == "fp32"
    assert (
        script["with_precision"](override(quick, {"trainer.precision": "bf16"}), Study(name="x")).trainer.precision
        == "bf16"
    )
    with pytest.raises(ValueError, match=r"--trainer.precision auto: a budget is planned for one precision"):
        script["with_precision"](quick, Study(name="x", gpus_per_worker=1.0))

    def batches(**more):
        arguments = script["Arguments"](classes=(6,), heads=("embedding:all",), budget="0.1GiB", **more)
        return [cell["trainer.batch_size"] for cell in script["cells"](arguments, base)]

    (alone,) = batches()
    assert alone > 2
    assert batches(study=Study(name="x", workers=2)) == [2 * alone]
    assert batches(study=Study(name="x", workers=2), max_batch=5) == [4]


def test_rate_goes_with_the_batch(quick):
    scaled_lr = runpy.run_path(str(SCRIPT))["scaled_lr"]
    adamw = override(quick, {"optimizer.name": "adamw", "optimizer.lr": 0.01, "trainer.batch_size": 4})
    assert scaled_lr(adamw, 16) == pytest.approx(0.02)
    assert scaled_lr(override(adamw, {"optimizer.name": "sgd"}), 16) == pytest.approx(0.04)
