"""`kiloseg train` as a user starts it: a dry run, other ways of tracking, fine-tuning, early ends."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from scripts import words_of

from kiloseg import cli
from kiloseg.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]


def words(squares, output, **more):
    flags = {
        "data.path": squares,
        "data.crop": 64,
        "data.loader-workers": 0,
        "model.arch": "fpn",
        "model.backbone": "test_resnet",
        "model.weights": "none",
        "model.embed-dim": 4,
        "optimizer.warmup-steps": 0,
        "trainer.steps": 4,
        "trainer.validate-every": 2,
        "trainer.batch-size": 8,
        "trainer.output": output,
        "runs": output.parent / "runs",
    }
    return words_of(flags | {name.replace("__", ".").replace("_", "-"): value for name, value in more.items()})


@pytest.fixture(autouse=True)
def own_database(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_dry_run_says_what_would_be_trained_and_writes_nothing(squares, tmp_path, capsys):
    output = tmp_path / "train"
    cli.main(["train", *words(squares, output, trainer__micro_batch_size=4, loss__class_weights="sqrt"), "--dry-run"])
    said = capsys.readouterr().out
    assert "squares in" in said and "6 classes, 42 training samples" in said
    assert "fpn over test_resnet, head embedding" in said
    assert "steps 1 to 4 of 8 crops of 64 px, 0.80 epochs of 5 steps" in said
    assert "2 times on 11 samples of val" in said
    assert re.search(r"planned memory of a training step: 0\.\d+ GiB", said)
    assert re.search(r"largest validation batch, 11 images of 64 x 64: 0\.\d+ GiB", said)
    assert "class weights: sqrt, from" in said
    assert list(tmp_path.iterdir()) == []


def test_dry_run_refuses_what_training_would_refuse(squares, tmp_path):
    refused = words(squares, tmp_path / "train", model__arch="deeplabv3plus", trainer__batch_size=1)
    with pytest.raises(SystemExit, match=r"cannot take training images .* trainer.batch_size = 1"):
        cli.main(["train", *refused, "--dry-run"])
    assert list(tmp_path.iterdir()) == []


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mlflow", "ray", "optuna"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
from kiloseg import cli
cli.main(sys.argv[1:])
"""


def test_csv_needs_no_mlflow(squares, tmp_path):
    output = tmp_path / "my run"
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "train", *words(squares, output), "--tracking", "csv"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = (output / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("step,") and "val/miou" in lines[0] and len(lines) == 3
    assert len((output / "iou_per_class.csv").read_text().splitlines()) == 7
    assert str(output / "metrics.csv") in done.stdout
    assert not (tmp_path / "runs").exists()


def test_tensorboard_and_a_resumption(squares, tmp_path, capsys):
    output = tmp_path / "my run"
    command = ["train", *words(squares, output), "--tracking", "tensorboard"]
    cli.main(command)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("look at them: ")]
    assert shlex.split(line.partition(": ")[2])[1:] == ["--logdir", str(output / "tensorboard")]
    with pytest.raises(SystemExit, match="holds a run already"):
        cli.main(command)
    whole = (output / "metrics.csv").read_text()
    (output / "metrics.csv").unlink()
    cli.main([*command, "--resume"])
    assert (output / "metrics.csv").read_text() == whole, "numbers of a resumed run are those of its checkpoint"


def test_fine_tuning_from_a_run_in_mlflow(squares, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    cli.main(["train", *words(squares, first)])
    run = (first / "mlflow_run_id").read_text().strip()
    cli.main(["train", *words(squares, second, model__weights=f"runs:/{run}", data__num_classes=4)])
    assert load_checkpoint(second / "step-00000004.pt")["config"]["model.weights"] == str(first)
    capsys.readouterr()
    cli.main(["train", *words(squares, tmp_path / "third", model__weights=first), "--dry-run"])
    assert "6 of 6 classes start from the 6 there, by name" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="runs:/none cannot be read"):
        cli.main(["train", *words(squares, tmp_path / "third", model__weights="runs:/none")])


def test_run_that_was_deleted_in_mlflow_or_is_gone_is_resumed(squares, tmp_path, capsys):
    output, runs = tmp_path / "train", tmp_path / "runs"
    cli.main(["train", *words(squares, output)])
    (output / "step-00000004.pt").unlink()
    run = (output / "mlflow_run_id").read_text().strip()
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    client.delete_run(run)
    with pytest.raises(SystemExit, match=f"{run}.* was deleted in MLflow; restore it with"):
        cli.main(["train", *words(squares, output), "--resume"])
    client.restore_run(run)
    other = tmp_path / "other runs"
    cli.main(["train", *words(squares, output, runs=other), "--resume"])
    new = (output / "mlflow_run_id").read_text().strip()
    assert new != run
    history = MlflowClient(f"sqlite:///{other}/mlflow.db").get_metric_history(new, "val/miou")
    assert [point.step for point in history] == [2, 4], "also the numbers from before"


def test_early_end_is_said_with_the_best_checkpoint(squares, tmp_path, capsys):
    output = tmp_path / "train"
    flags = words(squares, output, trainer__steps=400, trainer__validate_every=1, trainer__patience=1)
    cli.main(["train", *flags, "--tracking", "csv"])
    said = capsys.readouterr().out
    (best,) = re.findall(r"than the best, 0\.\d+, whose checkpoint is (\S+)", said)
    assert "stopped early: 1 validations in a row (trainer.patience)" in said
    assert load_checkpoint(best)["report"]["val/miou"] == max(
        report["val/miou"] for report in load_checkpoint(max(output.glob("step-*.pt")))["reports"]
    )
