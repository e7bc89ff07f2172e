"""Decides by which scheduler, and from which validation on, a search's trials are compared and stopped early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from kiloseg.tuning.reports import STEP
from kiloseg.tuning.space import Space

if TYPE_CHECKING:
    from kiloseg.tuning.search import Search

WARMUP = "optimizer.warmup_steps"


def scheduler_of(study: Search, space: Space) -> TrialScheduler:
    """Returns the scheduler that stops a search's trials early, or one that stops none if the search does not want that."""
    trainer = space.base.trainer
    grace = first_rung(space)
    if not study.early_stopping or study.tradeoff != "none" or not 0 < grace < trainer.steps:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr=STEP,  # Tune's own training_iteration restarts at 1 when a controller is restarted
        max_t=trainer.steps,
        grace_period=grace,
        reduction_factor=study.reduction,
    )


def first_rung(space: Space) -> int:
    """Returns the step of the first validation after the warm-up of every trial; 0 if there are no validations on the way.

    Before, the learning rates of trials differ from those that were chosen, and so does what their mIoU says.
    """
    every = space.base.trainer.validate_every
    searched = [edge for each in space.dimensions if each.name == WARMUP for edge in each.edges]
    warmup = max(searched or [space.base.optimizer.warmup_steps])
    return every * max(-(-warmup // every), 1) if every else 0
