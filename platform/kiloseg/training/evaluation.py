"""Validates models: this is the only path from a model and batches to metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kiloseg.config import Config
from kiloseg.data.reading.batches import Batch
from kiloseg.memory.peak import PeakMemory
from kiloseg.metrics import IoU
from kiloseg.models import Segmenter
from kiloseg.overrides import from_flat, override
from kiloseg.storage.errors import DataError
from kiloseg.training.checkpoint import load_checkpoint


@torch.no_grad()
def evaluate(
    segmenter: Segmenter,
    batches: Iterable[Batch],
    *,
    autocast: torch.autocast | None = None,
    peak: PeakMemory | None = None,
    stop: Callable[[], bool] | None = None,
) -> IoU | None:
    """Counts hits over `batches`, summed over the workers of a process group. The mode of the model is restored.

    Args:
        segmenter: the model, on the device to use.
        batches: this worker's share of the validation split.
        autocast: the mixed precision of training, if any.
        peak: measures the memory of the predictions; on a CPU, only of the first batch.
        stop: called before every batch; when it returns True, the evaluation stops. Use it only with a single worker.

    Returns:
        The counts, whose `compute()` returns the metrics as numbers; None if `stop` returned True.

    Raises:
        DataError: no pixel was labeled, or `batches` found that samples are missing.
    """
    device = next(segmenter.parameters()).device
    was_training = segmenter.training
    segmenter.eval()
    counts = IoU(segmenter.num_classes, device=device)
    stopped = False
    for images, labels in batches:
        if stop is not None and stop():
            stopped = True
            break
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with contextlib.nullcontext() if peak is None else peak.step(images, labels):
            predicted = predict(segmenter, images, autocast)
        counts.update(predicted, labels)
        if device.type == "cpu":
            peak = None
    segmenter.train(was_training)
    if stopped:
        return None
    counts.all_reduce()
    if not counts.num_labeled:
        raise DataError(
            "no pixel of the evaluated samples has a label of the model's classes, so there is no IoU; check the masks "
            "of the split (kiloseg verify DIR), data.val_samples and data.num_classes"
        )
    return counts


@torch.no_grad()
def predict(segmenter: Segmenter, images_B3HW: Tensor, autocast: torch.autocast | None = None) -> Tensor:
    """Predicts the class of every pixel, int64 of shape (B, H, W), in the mixed precision of training, if any."""
    with autocast or contextlib.nullcontext():
        return segmenter.predict(images_B3HW)


def load_segmenter(checkpoint: Path) -> tuple[Segmenter, Config]:
    """Loads the model of a checkpoint file, on the CPU and in evaluation mode, and the config of its run.

    Raises:
        ValueError: the file is damaged or of another format.
    """
    return segmenter_of(load_checkpoint(checkpoint))


def segmenter_of(state: dict[str, Any]) -> tuple[Segmenter, Config]:
    """Does the same as `load_segmenter` for a state that `load_checkpoint` returned."""
    config = from_flat(state["config"])
    # The checkpoint has all weights; pretrained ones would be fetched only to be overwritten.
    model = override(config.model, {"weights": "none"})
    segmenter = Segmenter(model, state["num_classes"], config.loss)
    try:
        segmenter.load_state_dict(state["model"])
    except RuntimeError as error:  # torch lists every parameter that does not fit
        raise DataError(
            f"{state.get('location', 'the checkpoint')} has weights that do not fit its settings ({str(error)[:300]}): expected "
            f"{config.model.arch} over {config.model.backbone} with {state['num_classes']} classes; it is damaged"
        ) from error
    return segmenter.eval(), config


@torch.no_grad()
def predict_samples(
    segmenter: Segmenter, batches: Iterable[Batch], count: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns the first `count` samples: uint8 images (H, W, 3), labels (H, W) with -1 for ignore, predictions (H, W)."""
    samples: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for images, labels in batches:
        images, labels = images[: count - len(samples)], labels[: count - len(samples)]
        arrays = (images.permute(0, 2, 3, 1), labels, segmenter.predict(images))
        samples += zip(*(array.numpy() for array in arrays), strict=True)
        if len(samples) == count:
            break
    return samples
