"""Evaluates a trained model on a data set, in more detail than a validation during training."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kiloseg.data.classes import select_classes
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import validation_batches
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.loading import load
from kiloseg.inference.model import TrainedModel
from kiloseg.metrics import BoundaryIoU, CalibrationError, ConfusedPairs, IoU
from kiloseg.overrides import override
from kiloseg.storage.atomic import write_whole
from kiloseg.storage.errors import DataError

PAIRS = 50
"""Number of confused pairs of classes to report."""
THIRDS = ("head", "medium", "tail")


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """The metrics of a model on the validation split of a data set."""

    metrics: dict[str, Any]
    """Content of metrics.json. Metrics are fractions from 0 to 1, or None if they are undefined; see `evaluate`."""
    table: list[dict[str, Any]]
    """One row per class with id, name, iou, boundary_iou, pixels, predicted_pixels and train_samples."""

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Writes metrics.json and classes.csv.

        Raises:
            ValueError: the files already exist and `overwrite` is not set.
        """
        folder = Path(folder)
        check_free(folder, overwrite)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.table[0].keys())
        writer.writeheader()
        writer.writerows(self.table)
        write_whole(folder / "classes.csv", text.getvalue().encode())
        write_whole(folder / "metrics.json", (json.dumps(self.metrics, indent=1, ensure_ascii=False) + "\n").encode())


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises ValueError if the folder holds an evaluation that must not be overwritten."""
    if not overwrite and (folder / "metrics.json").exists():
        raise ValueError(f"{folder / 'metrics.json'} exists; give --overwrite, or another --out")


@torch.no_grad()
def evaluate(
    model: TrainedModel | Path | str, data: Path | str, *, samples: int | None = None, progress: bool = True
) -> Evaluation:
    """Evaluates a model on whole validation images.

    Memory holds a few counters per class and one image: neither a C x C matrix nor all pixels.

    Args:
        model: a loaded model, or a source that `kiloseg.load` accepts.
        data: folder or URL of a data set with the model's classes, by their ids and names.
        samples: evaluate only this many of the first samples; None: all.
        progress: whether to show a progress bar.

    Returns:
        An evaluation whose `metrics` have "miou", "pixel_accuracy", "frequency_weighted_iou" (classes weighted by their
        labeled pixels), "boundary_miou" (https://arxiv.org/abs/2103.16562), "expected_calibration_error" (of
        `Result.confidence`), "head_miou", "medium_miou" and "tail_miou" (thirds of the classes by their training samples),
        "confused" (the most frequent wrong pairs of label and prediction), "classes", "samples", "data", "digest" and
        "source".

    Raises:
        ValueError: there is no such model, or the data set does not have its classes.
    """
    loaded = model if isinstance(model, TrainedModel) else load(model)
    info = read_info(data)
    settings = override(loaded.config.data, {"path": str(data), "val_batch_size": 1, "val_samples": samples})
    _check_classes(loaded.classes, select_classes(settings, info).ids, info.classes, str(data))
    C = len(loaded.classes)
    iou, boundary = IoU(C, device=loaded.device), BoundaryIoU(C, device=loaded.device)
    calibration, confused = CalibrationError(), ConfusedPairs(C)
    total = min(samples or math.inf, info.num_samples("val"))
    count = 0
    for batch in tqdm(
        validation_batches(settings, info), desc="evaluate", total=int(total), disable=None if progress else True
    ):
        labels = batch.labels.to(loaded.device)
        size = (labels.shape[1], labels.shape[2])
        predicted, confidence = loaded.segmenter.head.predict_confidence(loaded.outputs(batch.images), size)
        known = labels >= 0
        iou.update(predicted, labels)
        boundary.update(predicted, labels)
        confused.update(predicted, labels)
        calibration.update(confidence[known], (predicted == labels)[known])
        count += len(labels)
    table = _table(loaded.classes, iou, boundary)
    metrics = _metrics(loaded.classes, iou, boundary, calibration, confused)
    named = {"samples": count, "data": info.name, "digest": info.digest, "source": loaded.source}
    return Evaluation(metrics=metrics | named, table=table)


def _check_classes(classes: ModelClasses, ids: np.ndarray, names: list[str], data: str) -> None:
    if len(classes) != len(ids):
        raise DataError(
            f"{data} has {len(ids)} classes, but the model has {len(classes)}: expected the data set it was trained on, "
            f"{classes.data or 'whose name is unknown'}, or one with the same classes"
        )
    for label, (mine, theirs) in enumerate(zip(classes.ids, ids, strict=True)):
        if mine != theirs or classes.names[label] not in (names[theirs], f"class {label}"):
            raise DataError(
                f"{data} has class {theirs} ({names[theirs]!r}) where the model has {mine} ({classes.names[label]!r}): expected "
                "a data set with the model's classes"
            )


def _metrics(
    classes: ModelClasses, iou: IoU, boundary: IoU, calibration: CalibrationError, confused: ConfusedPairs
) -> dict[str, Any]:
    computed = iou.compute()
    iou_C, pixels_C = computed["iou_per_class"].numpy(), iou.counts_3C[2].cpu().numpy()
    occurs_C = pixels_C > 0
    metrics: dict[str, Any] = {
        "miou": computed["miou"],
        "pixel_accuracy": computed["pixel_accuracy"],
        "frequency_weighted_iou": float((iou_C[occurs_C] * pixels_C[occurs_C]).sum() / max(pixels_C.sum(), 1)),
        "boundary_miou": boundary.compute()["miou"],
        "expected_calibration_error": calibration.compute(),
        "classes": len(classes),
    }
    if classes.train_samples is not None:
        order = np.argsort(-classes.train_samples, kind="stable")
        for name, third in zip(THIRDS, np.array_split(order, 3), strict=True):
            present = iou_C[third][~np.isnan(iou_C[third])]
            metrics[f"{name}_miou"] = float(present.mean()) if len(present) else math.nan
    metrics = {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in metrics.items()
    }
    metrics["confused"] = [
        {"label": classes.names[pair.label], "predicted": classes.names[pair.predicted], "pixels": pair.pixels}
        for pair in confused.most(PAIRS)
    ]
    return metrics


def _table(classes: ModelClasses, iou: IoU, boundary: IoU) -> list[dict[str, Any]]:
    _, predicted_C, pixels_C = iou.counts_3C.tolist()
    iou_C, boundary_C = (each.compute()["iou_per_class"].tolist() for each in (iou, boundary))
    return [
        {
            "id": int(classes.ids[label]),
            "name": name,
            "iou": "" if math.isnan(iou_C[label]) else iou_C[label],
            "boundary_iou": "" if math.isnan(boundary_C[label]) else boundary_C[label],
            "pixels": pixels_C[label],
            "predicted_pixels": predicted_C[label],
            "train_samples": "" if classes.train_samples is None else int(classes.train_samples[label]),
        }
        for label, name in enumerate(classes.names)
    ]
