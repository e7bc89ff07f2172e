"""Computes how much memory a run needs and how large a batch fits, without a GPU and without running it.

The training step and the validation prediction run on fake tensors. CUDA's context (about 0.5 GiB), convolution
workspaces and fragmentation are not counted: leave room for them in --fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from kiloseg import cli
from kiloseg.config import Config


@dataclass(frozen=True, kw_only=True)
class Arguments(cli.Preset):
    """Plan the memory of a run."""

    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """The run to plan; data.num_classes or data.path gives its number of classes."""
    fit: str = "24GiB"
    """GPU memory for which to find the largest batch, such as 24GiB."""
    size: tuple[int, int] | None = None
    """Height and width of validation images, multiples of 32. None: the training crop."""


def main(arguments: Arguments) -> None:
    """Prints the two peaks and the largest batch."""
    from kiloseg.memory import largest_batch, parse_gib, plan, plan_evaluation

    run, budget_gib = arguments.run, parse_gib(arguments.fit, "--fit")
    height, width = arguments.size or (run.data.crop, run.data.crop)
    print(f"{run.model.arch} over {run.model.backbone}, head {run.model.head}, crop {run.data.crop}")
    print(f"training step, batch {run.trainer.batch_size}: {plan(run):.3f} GiB")
    evaluation_gib = plan_evaluation(run, size=arguments.size)
    print(f"validation, {run.data.val_batch_size} images of {height} x {width}: {evaluation_gib:.3f} GiB")
    print(f"largest batch within {arguments.fit}: {largest_batch(run, budget_gib):,} images")
