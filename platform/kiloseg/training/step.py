"""Takes one training step; the same code serves training, planning its memory and measuring it."""

from __future__ import annotations

import contextlib
from typing import cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kiloseg.config import Config
from kiloseg.models import Segmenter


def training_step(
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images_B3HW: Tensor,
    labels_BHW: Tensor,
    *,
    autocast: torch.autocast | None = None,
    world: int = 1,
) -> Tensor:
    """Takes one optimization step: forward under `autocast`, loss, backward, clipping, update. Gradients are freed.

    Args:
        config: the run, of which `optimizer.clip_norm` is used.
        model: a Segmenter, or DDP around one.
        optimizer: the optimizer of the model's parameters.
        images_B3HW: this worker's uint8 images, on any device.
        labels_BHW: int64 labels with -1 for ignore, on any device.
        autocast: see `kiloseg.training.precision.autocast_of`. The loss is computed outside of it.
        world: the number of workers that take the step together.

    Returns:
        This worker's part of the cross-entropy, such that the mean over workers is that of all their pixels: a scalar on the
        model's device, without graph.
    """
    device = next(model.parameters()).device
    images, labels = images_B3HW.to(device, non_blocking=True), labels_BHW.to(device, non_blocking=True)
    with autocast or contextlib.nullcontext():
        outputs = model(images)
    segmenter = cast(Segmenter, model.module if isinstance(model, DistributedDataParallel) else model)
    cross_entropy, regularizer = segmenter.head.loss(outputs, labels)
    if world > 1:
        cross_entropy = cross_entropy * _share_of_pixels(labels)
    loss = cross_entropy if regularizer is None else cross_entropy + regularizer
    loss.backward()
    if config.optimizer.clip_norm > 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return cross_entropy.detach()


def _share_of_pixels(labels_BHW: Tensor) -> Tensor:
    """Returns this worker's number of labeled pixels divided by the mean over all workers.

    DDP averages gradients over workers; with this factor that is the gradient of the mean over all pixels.
    """
    mine = (labels_BHW >= 0).sum().float()
    total = mine.clone()
    torch.distributed.all_reduce(total)
    return mine * torch.distributed.get_world_size() / total.clamp(min=1)
