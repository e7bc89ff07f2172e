"""Training samples that cannot be used, and how many of them a run may do without."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from kiloseg.data.shards import DataError
from kiloseg.data.streams import Position

NO_IMAGE = 128
"""Value of the pixels that stand for an image: middle grey, which says nothing to batch statistics."""


class BadSamples:
    """Those that one training worker has met, in any of its loader processes; each counts once, whatever the epochs.

    Args:
        allowed: samples that may be left out.
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._met = torch.full((allowed, 2), -1, dtype=torch.int64).share_memory_()
        # One of a spawned context serves forked processes too, but not the other way round.
        self._lock = torch.multiprocessing.get_context("spawn").Lock()

    def leave_out(self, image: Tensor, labels: Tensor, position: Position, error: DataError) -> None:
        """Gives the place of a sample in its batch no image, and no label to learn from.

        Raises:
            DataError: what was wrong with the sample, if it is one more than allowed.
        """
        with self._lock:
            sample = torch.tensor([position.shard, position.sample])
            known = bool((self._met == sample).all(dim=1).any())
            free = (self._met[:, 0] < 0).nonzero()
            if not known and not len(free):
                raise DataError(
                    f"{error}; or leave such samples out: data.max_bad_samples = {self._allowed} allows no more"
                ) from error
            if not known:
                self._met[free[0, 0]] = sample
                number = self._allowed - len(free) + 1
                warnings.warn(f"{error}; it is left out ({number} of {self._allowed} allowed)", stacklevel=2)
        image.fill_(NO_IMAGE)
        labels.fill_(-1)
