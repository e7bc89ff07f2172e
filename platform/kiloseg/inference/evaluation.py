"""Evaluates a trained model on a data set, in more detail than a validation during training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kiloseg.data.description import read_info
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.counting import Task, Views, count
from kiloseg.inference.counts import Counts
from kiloseg.inference.evaluation_files import Evaluation
from kiloseg.inference.groups import Level, levels_of
from kiloseg.inference.loading import load
from kiloseg.inference.matching import match_classes
from kiloseg.inference.model import TrainedModel
from kiloseg.metrics import auroc
from kiloseg.overrides import override
from kiloseg.storage.errors import DataError

PAIRS = 50
"""Number of confused pairs of classes to report."""
THIRDS = ("head", "medium", "tail")


def evaluate(
    model: TrainedModel | Path | str,
    data: Path | str,
    *,
    samples: int | None = None,
    views: Views | None = None,
    workers: int = 1,
    by_name: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Evaluates a model on validation images.

    Memory holds a few counters per class, one image, and the network's outputs for it or, with a tile, for a strip of it: neither
    a C x C matrix nor logits of all classes.

    Args:
        model: a loaded model, or a source that `kiloseg.load` accepts.
        data: folder or URL of a data set with the model's classes, by their ids and names; after classes were changed, by their
            names.
        samples: evaluate only this many of the first samples; None: all.
        views: sliding window, scales and mirror images; None: whole images as they are.
        workers: number of processes, which gives the same counts as one. A script that asks for more than one needs
            `if __name__ == "__main__"`.
        by_name: match classes by name even if the model's were not changed, and let both have classes that the other lacks.
        progress: whether to show a progress bar.

    Returns:
        An evaluation whose `metrics` have "miou", "pixel_accuracy", "top5_accuracy", "frequency_weighted_iou" (classes weighted
        by their labeled pixels), "boundary_miou" (https://arxiv.org/abs/2103.16562), "expected_calibration_error" (of
        `Result.confidence`), "head_miou", "medium_miou" and "tail_miou" (thirds of the classes by their training samples),
        "group_miou" (a number for each level of the classes' groups), "absent_auroc" (how well the familiarity separates the
        model's classes but the background from classes of the data set that it does not have), "confused" (the most frequent wrong
        pairs of label and prediction), "absent" (names of the data set's classes that the model does not have), "classes",
        "samples", "data", "digest" and "source". Classes that the data set does not have are not in the means.

    Raises:
        ValueError: there is no such model, or the data set does not have its classes.
    """
    if workers < 1:
        raise ValueError(f"workers = {workers}: expected at least 1")
    loaded = model if isinstance(model, TrainedModel) else load(model)
    info = read_info(data)
    settings = override(loaded.config.data, {"path": str(data), "val_batch_size": 1, "val_samples": samples})
    matching = match_classes(loaded.classes, settings, info, by_name=by_name)
    task = Task(data=override(settings, {"num_classes": None}), info=info, matching=matching, views=views or Views())
    total = int(min(samples or math.inf, info.num_samples("val")))
    with tqdm(desc="evaluate", total=total, disable=None if progress else True) as bar:
        counts, shown = count(loaded, task, workers=workers, on_image=bar.update)
    if not counts.iou.num_labeled:
        raise DataError(
            f"no pixel of the evaluated samples of {data} has a label of the model's classes; check the masks (kiloseg verify) "
            "and the classes of both"
        )
    levels = levels_of(loaded.classes)
    metrics = _metrics(loaded.classes, matching.in_data, counts, levels) | {
        "absent": matching.absent,
        "samples": counts.samples,
        "data": info.name,
        "digest": info.digest,
        "source": loaded.source,
    }
    return Evaluation(
        metrics=metrics,
        table=_table(loaded.classes, matching.in_data, counts),
        groups=_group_table(levels, counts),
        reliability=counts.calibration.reliability().numpy(),
        shown=shown,
        classes=loaded.classes,
        familiarity=counts.known,
    )


def _iou(counts: Counts, in_data: np.ndarray) -> np.ndarray:
    iou_C: np.ndarray = counts.iou.compute()["iou_per_class"].numpy()
    return np.where(in_data, iou_C, np.nan)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _metrics(classes: ModelClasses, in_data: np.ndarray, counts: Counts, levels: list[Level]) -> dict[str, Any]:
    computed = counts.iou.compute()
    iou_C, pixels_C = _iou(counts, in_data), counts.iou.counts_3C[2].cpu().numpy()
    boundary_C = np.where(in_data, counts.boundary.compute()["iou_per_class"].numpy(), np.nan)
    occurs_C = pixels_C > 0
    metrics: dict[str, Any] = {
        "miou": computed["miou"] if in_data.all() else _mean(iou_C),
        "pixel_accuracy": computed["pixel_accuracy"],
        "top5_accuracy": (counts.in_first[0] / counts.in_first[1]).item(),
        "frequency_weighted_iou": float((iou_C[occurs_C] * pixels_C[occurs_C]).sum() / max(pixels_C.sum(), 1)),
        "boundary_miou": _mean(boundary_C),
        "expected_calibration_error": counts.calibration.compute(),
        "absent_auroc": auroc(counts.known, counts.absent),
        "classes": len(classes),
    }
    if classes.train_samples is not None:
        order = np.argsort(-classes.train_samples, kind="stable")
        for name, third in zip(THIRDS, np.array_split(order, 3), strict=True):
            metrics[f"{name}_miou"] = _mean(iou_C[third])
    metrics = {
        name: None if isinstance(value, float) and math.isnan(value) else value for name, value in metrics.items()
    }
    metrics["group_miou"] = [counter.compute()["miou"] for counter in counts.of_groups] if levels else None
    metrics["confused"] = [
        {"label": classes.names[pair.label], "predicted": classes.names[pair.predicted], "pixels": pair.pixels}
        for pair in counts.confused.most(PAIRS)
    ]
    return metrics


def _table(classes: ModelClasses, in_data: np.ndarray, counts: Counts) -> list[dict[str, Any]]:
    _, predicted_C, pixels_C = counts.iou.counts_3C.tolist()
    iou_C = _iou(counts, in_data).tolist()
    boundary_C = np.where(in_data, counts.boundary.compute()["iou_per_class"].numpy(), np.nan).tolist()
    return [
        {
            "id": int(classes.ids[label]),
            "name": name,
            "iou": None if math.isnan(iou_C[label]) else iou_C[label],
            "boundary_iou": None if math.isnan(boundary_C[label]) else boundary_C[label],
            "pixels": pixels_C[label],
            "predicted_pixels": predicted_C[label],
            "train_samples": None if classes.train_samples is None else int(classes.train_samples[label]),
        }
        for label, name in enumerate(classes.names)
    ]


def _group_table(levels: list[Level], counts: Counts) -> list[dict[str, Any]]:
    rows = []
    for number, (level, counter) in enumerate(zip(levels, counts.of_groups, strict=True), start=1):
        iou_G = counter.compute()["iou_per_class"].tolist()
        classes_G = np.bincount(level.group_of, minlength=len(level.names)).tolist()
        for name, iou, size in zip(level.names, iou_G, classes_G, strict=True):
            rows.append({"level": number, "name": name, "classes": size, "iou": None if math.isnan(iou) else iou})
    return rows
