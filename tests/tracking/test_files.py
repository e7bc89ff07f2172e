"""Numbers of a single run without MLflow: CSV and TensorBoard."""

import csv
import math

import pytest

from kiloseg.tracking.files import CsvLog, TensorBoardLog


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_become_rows_and_new_ones_columns(tmp_path):
    log = CsvLog(tmp_path / "run")
    log.log_metrics({"train/loss": 0.5}, step=1)
    log.log_metrics({"train/loss": 0.25, "val/miou": 1 / 3}, step=2)
    log.log_metrics({"val/miou": math.nan, "train/loss": 1e-9}, step=3)
    found = rows(log.path)
    assert [row["step"] for row in found] == ["1", "2", "3"]
    assert [row["train/loss"] for row in found] == ["0.5", "0.25", "1e-09"]
    assert [row["val/miou"] for row in found] == ["", repr(1 / 3), ""], "as exact as they are, and no NaN"


def test_resumed_run_adds_what_is_missing(tmp_path):
    CsvLog(tmp_path).log_metrics({"train/loss": 0.5}, step=1)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("2,0.2")  # a crash cut the line short
    log = CsvLog(tmp_path)
    log.log_metrics({"train/loss": 0.9}, step=1)
    log.log_metrics({"train/loss": 0.1, "epoch": 2.0}, step=3)
    assert next((row["step"], row["train/loss"], row["epoch"]) for row in rows(log.path)) == ("1", "0.5", "")
    assert rows(log.path)[-1] == {"step": "3", "train/loss": "0.1", "epoch": "2.0"}


def test_tables_are_csv(tmp_path):
    CsvLog(tmp_path).log_table({"name": ["a, b", "c"], "iou": [0.5, None]}, "iou_per_class.json")
    assert rows(tmp_path / "iou_per_class.csv") == [{"name": "a, b", "iou": "0.5"}, {"name": "c", "iou": ""}]


def test_tensorboard_gets_scalars(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.log_metrics({"train/loss": 0.5, "val/miou": math.nan}, step=1)
    log.log_metrics({"train/loss": 0.5}, step=1)
    log.end("FINISHED")
    (events,) = log.events.iterdir()
    content = events.read_bytes()
    assert content.count(b"train/loss") == 1 and b"val/miou" not in content
    assert len(rows(tmp_path / "metrics.csv")) == 1


def test_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ValueError, match=r"needs tensorboardX: pip install 'kiloseg\[tensorboard\]'"):
        TensorBoardLog(tmp_path)
