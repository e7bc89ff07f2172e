"""Loads a trained model by its path, URL, run or study."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kiloseg.config import Precision
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.model import TrainedModel
from kiloseg.overrides import from_flat
from kiloseg.storage.errors import DataError
from kiloseg.tracking.sources import place_of
from kiloseg.training.evaluation import segmenter_of
from kiloseg.training.model_folder import load_trained
from kiloseg.training.precision import autocast_of


def load(
    source: Path | str,
    *,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    runs: Path | str = "runs",
) -> TrainedModel:
    """Loads a trained model, ready to predict.

    Args:
        source: a checkpoint file; or a folder of checkpoints, of which the newest intact one is used; or a folder that
            `kiloseg export --format folder` wrote; each by path or by a URL that pyarrow supports (s3://..., gs://...); or
            `runs:/ID`, a run or a study in MLflow; or `models:/NAME@ALIAS` or `models:/NAME/VERSION`, a registered model; or the
            name of a study, whose newest run with a checkpoint is used. For a study, the best trial's checkpoint is loaded.
        device: where the network runs; None: a GPU if there is one.
        precision: as `trainer.precision`.
        scales: factors of an image's sides, above 0 and at most 8, whose outputs are averaged, such as (1, 1.2, 1.4).
        flip: whether the outputs of the mirror image are averaged too.
        runs: folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server.

    Raises:
        ValueError: there is no such model, it is damaged, or its run has no checkpoint; or `scales` are impossible.
        ConnectionError: a store or a tracking server does not answer.
    """
    content = content_of(source, runs)
    return model_of(content, source, device=device, precision=precision, scales=scales, flip=flip)


def model_of(
    content: dict[str, Any],
    source: Path | str,
    *,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> TrainedModel:
    """Does the same as `load` for the content of a checkpoint (`content_of`) that came from `source`, perhaps edited."""
    segmenter, config = segmenter_of(content)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return TrainedModel(
        segmenter=segmenter.to(place),
        config=config,
        classes=classes_of(content),
        source=str(source),
        autocast=autocast_of(precision, place),
        scales=tuple(scales),
        flip=flip,
    )


def content_of(source: Path | str, runs: Path | str = "runs") -> dict[str, Any]:
    """Reads the checkpoint of a source (see `load`) onto the CPU; the key "location" of the content says where it is."""
    place = place_of(str(source), Path(runs))
    state = load_trained(place)
    if state is None:
        raise ValueError(
            f"{place} has no checkpoint (expected step-NNNNNNNN.pt) and no exported model (config.json); name a checkpoint, "
            "a run or a study"
        )
    return state


def classes_of(state: dict[str, Any]) -> ModelClasses:
    """Returns the classes that a checkpoint records; without a record, those of its data set, or unnamed ones if it is gone."""
    num_classes = state["num_classes"]
    if "classes" in state:
        classes = ModelClasses.from_record(state["classes"])
        if len(classes) != num_classes:
            raise DataError(
                f"{state['location']} has {num_classes} classes but names {len(classes)}: expected the same number; it is "
                "damaged, so use another checkpoint"
            )
        return classes
    try:
        data = from_flat(state["config"]).data
        classes = ModelClasses.of_data(data)
    except (DataError, ConnectionError) as error:
        warnings.warn(
            f"{state['location']} does not name its classes, and its data set cannot be read ({error}); "
            "they are called by their numbers",
            stacklevel=3,
        )
        return ModelClasses.unnamed(num_classes)
    if len(classes) != num_classes:
        raise ValueError(
            f"{state['location']} has {num_classes} classes, but its data set {data.path} now gives {len(classes)}; "
            "restore the data set that it was trained on"
        )
    return classes
