"""Training samples that cannot be used, and how many of them a run may do without."""

from __future__ import annotations

import warnings

import torch
import torch.distributed
from torch import Tensor

from kiloseg.data.reading.order import Position
from kiloseg.storage.errors import DataError

NO_IMAGE = 128
"""Value of the pixels that stand for an image: middle grey, which says nothing to batch statistics."""

TEXT_BYTES = 400
"""Kept of what was wrong with a sample."""


class BadSamples:
    """Those that one training worker has met, in any of its loader processes; each counts once, whatever the epochs.

    Args:
        allowed: samples that may be left out.
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._met = torch.full((allowed, 2), -1, dtype=torch.int64).share_memory_()
        self._texts = torch.zeros((allowed, TEXT_BYTES), dtype=torch.uint8).share_memory_()
        # One of a spawned context serves forked processes too, but not the other way round.
        self._lock = torch.multiprocessing.get_context("spawn").Lock()

    def state(self, world: int, device: torch.device) -> dict[str, Tensor]:
        """What `restore` takes, of any of `world` workers, all of which call this.

        Returns:
            "met", of shape (world, allowed, 2), shard and sample or -1, and "texts", (world, allowed, bytes). `device` is the
            one that the workers' group speaks through.
        """
        with self._lock:
            tables = {"met": self._met.clone(), "texts": self._texts.clone()}
        return {name: _of_all(table, world, device) for name, table in tables.items()}

    def restore(self, state: dict[str, Tensor], rank: int) -> None:
        """Goes on from a `state`, in which a worker that has none met no sample; before loader processes start."""
        if rank < len(state["met"]):
            known = state["met"][rank, :, 0] >= 0
            for table, name in ((self._met, "met"), (self._texts, "texts")):
                rows = state[name][rank][known][: self._allowed]
                table[: len(rows)] = rows

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
                text = str(error).encode()[:TEXT_BYTES]
                self._texts[free[0, 0], : len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
                number = self._allowed - len(free) + 1
                warnings.warn(f"{error}; it is left out ({number} of {self._allowed} allowed)", stacklevel=2)
        image.fill_(NO_IMAGE)
        labels.fill_(-1)


def texts_of(state: dict[str, Tensor]) -> list[str]:
    """What was wrong with each sample that any worker left out, its first 400 bytes, each once."""
    rows = state["texts"].flatten(end_dim=1).numpy()
    texts = [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in rows]
    return [text for text in dict.fromkeys(texts) if text]


def _of_all(table: Tensor, world: int, device: torch.device) -> Tensor:
    if world == 1 or not len(table):
        return table.unsqueeze(0)
    mine = table.to(device)
    tables = [torch.empty_like(mine) for _ in range(world)]
    torch.distributed.all_gather(tables, mine)
    return torch.stack(tables).cpu()
