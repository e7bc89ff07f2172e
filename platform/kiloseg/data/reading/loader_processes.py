"""Starts the processes that decode samples for a training process."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from kiloseg.config import Data
from kiloseg.storage.filesystems import RemoteFolder, open_folder
from kiloseg.storage.sockets import keep_socket_paths_short

PREFETCH = 2
"""Number of batches that a loader process prepares in advance."""


def data_loader(stream: IterableDataset[Any], data: Data, *, persistent: bool) -> DataLoader[Any]:
    """Returns a loader with `data.loader_workers` processes over a stream that makes whole batches.

    Args:
        stream: yields the batches of one process.
        data: the data set and its settings.
        persistent: whether the processes keep running after a pass over the stream.

    Raises:
        ValueError: TMPDIR is too long for the processes' sockets, and there is no other folder for them.
    """
    workers = data.loader_workers
    if workers:
        keep_socket_paths_short()
    # Clients of object stores have threads, which a forked process does not get. A spawned process takes seconds to start.
    spawned = workers > 0 and isinstance(open_folder(data.path), RemoteFolder)
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        persistent_workers=workers > 0 and (persistent or spawned),
        multiprocessing_context="spawn" if spawned else None,
        pin_memory=torch.cuda.is_available(),
    )


def loader_process() -> tuple[int, int]:
    """Returns the number of this loader process and how many there are; (0, 1) in the training process itself."""
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)
