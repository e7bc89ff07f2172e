"""Prices the settings of a trial in memory before it is launched, so that a search runs no trial that cannot fit."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import batch_shapes
from kiloseg.overrides import flatten, override

logger = logging.getLogger(__name__)

DEVICE = "device"
"""Word for the memory of this machine's GPU in place of an amount."""
USABLE = 0.9
"""Share of a GPU's memory that plans may use; the rest is for CUDA's context, convolution workspaces and fragmentation."""

WITHOUT_EFFECT = (
    "data.flip",
    "data.jitter",
    "data.scale_max",
    "data.scale_min",
    "loss.separation_margin",
    "loss.temperature",
    "optimizer.backbone_lr_factor",
    "optimizer.lr",
    "optimizer.poly_power",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "trainer.seed",
    "trainer.steps",
)
"""Settings that do not change a plan, so that trials that differ only in them are planned once."""


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """The memory that a trial may take, and what is needed to plan the memory that it will take; picklable."""

    gib: float
    """The budget of one training process in GiB, greater than 0."""
    base: Config
    """The run that trials vary."""
    num_classes: int
    """Number of classes C of the data set; used if neither `base` nor the trial has `data.num_classes`."""
    validation: tuple[int, int, int]
    """Images, height and width of the largest validation batch with its padding."""
    workers: int = 1
    """Training processes of a trial, which share its batch."""

    def planned_gib(self, settings: Mapping[str, Any]) -> float | None:
        """Returns the planned peak of a trial in GiB, or None if it cannot be planned.

        The peak is the larger one of a training step and of predicting the largest validation batch.

        Args:
            settings: the trial's settings by dotted names.
        """
        unchanged = flatten(self.base)
        values = {name: value for name, value in settings.items() if name not in WITHOUT_EFFECT}
        try:
            config = override(self.base, values | {name: unchanged[name] for name in WITHOUT_EFFECT})
            config = override(config, {"trainer.batch_size": max(config.trainer.batch_size // self.workers, 1)})
            return _planned_gib(config, config.data.num_classes or self.num_classes, self.validation)
        except (ValueError, RuntimeError) as error:
            # Such a trial is launched: if it cannot work, its own error says why.
            logger.warning("the memory of a trial cannot be planned (%s): %s", error, dict(settings))
            return None


def memory_budget(text: str, base: Config, *, workers: int, gpus_per_worker: float | None) -> MemoryBudget | None:
    """Returns the budget that a user asked for; None if it is the memory of a GPU that this machine does not have.

    Args:
        text: an amount such as "12GiB", or "device".
        base: the run that trials vary.
        workers: training processes of a trial.
        gpus_per_worker: GPUs of each; less than 1 if trials share a GPU.

    Raises:
        ValueError: the text is anything else.
    """
    gib = budget_gib(text, share=min(gpus_per_worker or 1.0, 1.0))
    if gib is None:
        return None
    info = read_info(base.data.path)
    crop = base.data.crop
    shapes = batch_shapes(base.data, info, "val") or [(base.data.val_batch_size, crop, crop)]
    return MemoryBudget(
        gib=gib,
        base=base,
        num_classes=info.num_classes,
        validation=max(shapes, key=lambda shape: shape[0] * shape[1] * shape[2]),
        workers=workers,
    )


def budget_gib(text: str, *, share: float = 1.0) -> float | None:
    """Returns a budget in GiB; None if it is the memory of a GPU that this machine does not have.

    Args:
        text: an amount such as "12GiB", or "device".
        share: the share of a GPU that a training process has, above 0 up to 1. It does not change an amount.

    Raises:
        ValueError: the text is anything else.
    """
    import torch

    from kiloseg.memory import GIB, parse_gib

    if text != DEVICE:
        return parse_gib(text, "--budget")
    if not torch.cuda.is_available():
        return None
    sizes = [torch.cuda.get_device_properties(device).total_memory for device in range(torch.cuda.device_count())]
    return USABLE * share * min(sizes) / GIB


@functools.lru_cache(maxsize=4096)
def _planned_gib(config: Config, num_classes: int, validation: tuple[int, int, int]) -> float:
    from kiloseg.memory import plan, plan_evaluation  # they import torch

    images, height, width = validation
    at_validation = override(config, {"data.val_batch_size": images})
    evaluation_gib = plan_evaluation(at_validation, num_classes=num_classes, size=(height, width))
    return max(plan(at_validation, num_classes=num_classes), evaluation_gib)
