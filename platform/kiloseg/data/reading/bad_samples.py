"""Keeps track of training samples that cannot be used and limits how many of them a run may leave out."""

from __future__ import annotations

import warnings

import torch
import torch.distributed
from torch import Tensor

from kiloseg.data.reading.order import Position
from kiloseg.storage.errors import DataError

NO_IMAGE = 128
"""Value of the pixels that replace a bad image: middle gray, which hardly affects batch statistics."""

TEXT_BYTES = 400
"""Number of bytes that are kept of the message about a bad sample."""


class BadSamples:
    """Records the bad samples that one training worker has met in any of its loader processes.

    Each sample counts once, no matter in how many epochs it occurs.

    Args:
        allowed: number of samples that may be left out.
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._met = torch.full((allowed, 2), -1, dtype=torch.int64).share_memory_()
        self._texts = torch.zeros((allowed, TEXT_BYTES), dtype=torch.uint8).share_memory_()
        # A lock of a spawn context also works in forked processes, but not the other way around.
        self._lock = torch.multiprocessing.get_context("spawn").Lock()

    def state(self, world: int, device: torch.device) -> dict[str, Tensor]:
        """Returns the state of all `world` workers, which any of them can pass to `restore`. All workers must call this.

        Returns:
            "met", of shape (world, allowed, 2), with shard and sample or -1, and "texts", of shape (world, allowed, bytes).
            `device` is the one that the workers' group communicates through.
        """
        with self._lock:
            tables = {"met": self._met.clone(), "texts": self._texts.clone()}
        return {name: _of_all(table, world, device) for name, table in tables.items()}

    def restore(self, state: dict[str, Tensor], rank: int) -> None:
        """Continues from a `state`. Call this before loader processes start. A worker missing in it has met no bad sample."""
        if rank < len(state["met"]):
            known = state["met"][rank, :, 0] >= 0
            for table, name in ((self._met, "met"), (self._texts, "texts")):
                rows = state[name][rank][known][: self._allowed]
                table[: len(rows)] = rows

    def leave_out(self, image: Tensor, labels: Tensor, position: Position, error: DataError) -> None:
        """Fills the place of a bad sample in its batch with a gray image and no labels to learn from.

        Raises:
            DataError: there is one bad sample more than allowed. The error says what was wrong with it.
        """
        with self._lock:
            sample = torch.tensor([position.shard, position.sample])
            known = bool((self._met == sample).all(dim=1).any())
            free = (self._met[:, 0] < 0).nonzero()
            if not known and not len(free):
                raise DataError(
                    f"{error}; data.max_bad_samples = {self._allowed} allows no more bad samples: repair the data set or raise it"
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
    """Returns the distinct messages, cut to 400 bytes each, about the samples that any worker left out."""
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
