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
from kiloseg.tuning.cluster import UNITS

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
    from kiloseg.memory import parse_gib

    if text != DEVICE:
        return parse_gib(text, "--budget")
    smallest = _smallest_gpu_gib()
    return None if smallest is None else USABLE * share * smallest


def trials_per_gpu(pack: str, budget: str) -> int:
    """Returns how many trials fit side by side on a GPU if none is planned to need more than the budget; 1 or more.

    Args:
        pack: the memory of a GPU, such as "80GiB", or "device".
        budget: the memory of a trial, such as "12GiB".

    Raises:
        ValueError: the budget is no amount, a GPU has no room for one such trial, or this machine has no GPU.
    """
    from kiloseg.memory import parse_gib

    if budget == DEVICE:
        raise ValueError(
            f"--pack {pack}: expected a --budget such as 12GiB beside it, the most that a trial may take; how many trials share "
            "a GPU follows from both"
        )
    gpu_gib = _smallest_gpu_gib() if pack == DEVICE else parse_gib(pack, "--pack")
    if gpu_gib is None:
        raise ValueError(
            "--pack device: this machine has no GPU; give the memory of the cluster's smallest, such as --pack 24GiB"
        )
    # The margin is for the rounding of amounts such as 0.9 * 80 GiB that are whole multiples of the budget.
    usable = USABLE * gpu_gib
    fitting = int(usable / parse_gib(budget, "--budget") + 1e-9)
    if fitting < 1:
        raise ValueError(
            f"--budget {budget}: expected at most {usable:.4g}GiB, nine tenths of a GPU of {gpu_gib:.4g} GiB (--pack {pack})"
        )
    return min(fitting, UNITS)


def _smallest_gpu_gib() -> float | None:
    import torch

    from kiloseg.memory import GIB

    if not torch.cuda.is_available():
        return None
    sizes = [torch.cuda.get_device_properties(device).total_memory for device in range(torch.cuda.device_count())]
    return min(sizes) / GIB


@functools.lru_cache(maxsize=4096)
def _planned_gib(config: Config, num_classes: int, validation: tuple[int, int, int]) -> float:
    from kiloseg.memory import plan, plan_evaluation  # they import torch

    images, height, width = validation
    at_validation = override(config, {"data.val_batch_size": images})
    evaluation_gib = plan_evaluation(at_validation, num_classes=num_classes, size=(height, width))
    return max(plan(at_validation, num_classes=num_classes), evaluation_gib)
