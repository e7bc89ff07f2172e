"""A report: one value under one name, as fields and as a mapping."""

import dataclasses

import pytest

from kiloseg.training.report import PeakReport, Report, Validation

STEP = Report(step=20, epoch=0.5, loss=1.5, images_per_s=9.0, lr=0.01)
VALIDATION = Validation(
    miou=0.25,
    pixel_accuracy=0.75,
    iou_per_class=[0.5, 0.0],
    other_splits={"val_style/miou": 0.125, "val_style/pixel_accuracy": 0.5},
    peaks=PeakReport(kind="cuda_allocated", training_gib=2.0, prediction_gib=1.0, reserved_gib=3.0),
    num_bad_samples=1,
    bad_samples=["sample a cannot be decoded"],
)
WHOLE = dataclasses.replace(STEP, validation=VALIDATION, checkpoint="runs/step-00000020.pt")

NAMES = {
    "step": 20,
    "epoch": 0.5,
    "train/loss": 1.5,
    "train/images_per_s": 9.0,
    "train/lr": 0.01,
    "val/miou": 0.25,
    "val/pixel_accuracy": 0.75,
    "val/iou_per_class": [0.5, 0.0],
    "val_style/miou": 0.125,
    "val_style/pixel_accuracy": 0.5,
    "peak_memory_kind": "cuda_allocated",
    "peak_memory_gib": 2.0,
    "val/peak_memory_gib": 1.0,
    "peak_memory_reserved_gib": 3.0,
    "train/bad_samples": 1,
    "bad_samples": ["sample a cannot be decoded"],
    "checkpoint": "runs/step-00000020.pt",
}
"""Written out, since MLflow, studies that are resumed and checkpoints have values under these names."""


def test_report_is_a_mapping_by_the_names_of_mlflow():
    assert dict(WHOLE) == NAMES
    assert dict(STEP) == {name: NAMES[name] for name in list(NAMES)[:5]}, "what is not there has no name"
    assert "val/miou" not in STEP
    assert WHOLE == NAMES


@pytest.mark.parametrize("report", [STEP, WHOLE])
def test_report_comes_back_from_its_names(report):
    again = Report.from_names(dict(report))
    assert dataclasses.asdict(again) == dataclasses.asdict(report)


def test_names_of_other_versions_are_left_aside():
    assert Report.from_names(NAMES | {"val/other": 1.0}) == WHOLE
    assert Report.from_names({}) is None


def test_numbers_are_what_mlflow_takes_as_metrics():
    texts = {"val/iou_per_class", "peak_memory_kind", "bad_samples", "checkpoint"}
    assert WHOLE.numbers() == {name: value for name, value in NAMES.items() if name not in texts}
