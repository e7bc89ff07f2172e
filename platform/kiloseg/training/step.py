"""Takes one training step; the same code serves training, planning its memory and measuring it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
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

    With `trainer.micro_batch_size`, forward and backward take a part of the images at a time. Each part counts by its share of
    the labeled pixels (or of their class weights), so that gradients sum up to those of the mean over all pixels.

    Args:
        config: the run, of which `optimizer.clip_norm` and `trainer.micro_batch_size` are used.
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
    segmenter = cast(Segmenter, model.module if isinstance(model, DistributedDataParallel) else model)
    size = config.trainer.micro_batch_size or len(images)
    parts = list(zip(images.split(size), labels.split(size), strict=True))
    shares = _shares(segmenter, labels, [part for _, part in parts], world)
    total = torch.zeros((), device=device)
    for number, ((images_of_part, labels_of_part), share) in enumerate(zip(parts, shares, strict=True)):
        # Gradients are averaged over the workers once, with the last part.
        last = number == len(parts) - 1
        local = contextlib.nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
        with local:
            with autocast or contextlib.nullcontext():
                outputs = model(images_of_part)
            cross_entropy, regularizer = segmenter.head.loss(outputs, labels_of_part)
            if share is not None:
                cross_entropy = cross_entropy * share
            loss = cross_entropy if regularizer is None else cross_entropy + regularizer / len(parts)
            loss.backward()
        total += cross_entropy.detach()
        del outputs, cross_entropy, regularizer, loss  # freed before the next part needs memory
    if config.optimizer.clip_norm > 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    segmenter.head.finish_step()
    return total


def _shares(segmenter: Segmenter, labels_BHW: Tensor, parts: Sequence[Tensor], world: int) -> list[Tensor | None]:
    """Returns the factor of the loss of each part of a worker's labels; None for a single part of a single worker.

    It is the part's number of labeled pixels (or the sum of their class weights) divided by the mean over all workers. DDP
    averages gradients over workers; with this factor that is the gradient of the mean over all pixels.
    """
    if world == 1 and len(parts) == 1:
        return [None]
    weights = torch.stack([segmenter.head.total_weight(part) for part in parts])
    whole = weights.sum()
    if world > 1:
        torch.distributed.all_reduce(whole)
    whole = torch.where(whole > 0, whole, 1)
    return list((weights * world / whole).unbind())
