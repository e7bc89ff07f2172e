"""Describes the group of processes that train one model together, or a single process that trains alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Describes the place of this process in the group."""

    rank: int
    """Number of this worker, from 0; rank 0 writes checkpoints."""
    world_size: int
    """Number of workers."""
    device: torch.device
    """Device on which this worker trains."""

    @staticmethod
    def of_process() -> Workers:
        """Returns the group that torch.distributed was initialized with, or a single worker."""
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
            return Workers(rank=rank, world_size=world_size, device=device)
        return Workers(rank=0, world_size=1, device=device)

    def any(self, value: bool) -> bool:
        """Returns whether the value is true for any worker. All workers must call this."""
        if self.world_size == 1:
            return value
        flag = torch.tensor(float(value), device=self.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def require_same_step(self, step: int) -> None:
        """Raises RuntimeError if workers are at different steps. All workers must call this.

        Workers that resume from different checkpoints, one of them unable to read the newest, must not train together.
        """
        if self.world_size > 1:
            steps = torch.tensor([step, -step], dtype=torch.float64, device=self.device)
            torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MAX)
            if steps[0] != -steps[1]:
                raise RuntimeError(f"workers resume from different steps, this one from {step}; start the run again")

    def parallel(self, model: nn.Module) -> nn.Module:
        """Returns the model for training, whose gradients are averaged over the workers."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
