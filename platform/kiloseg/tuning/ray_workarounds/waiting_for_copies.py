"""A study waits for the copy of its state before it writes the next.

Seen on Ray 2.60: Tune copies the state to the study's storage in a thread beside the study, which may write the next state over
the one that is being read. On a storage that is slower than that, a file becomes half of one state and half of the other,
from which nothing can be resumed.

It can go when tests/tuning/test_staging.py passes without `waiting_for_copies`: it compares every copy with its source.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.train._internal import storage as ray_storage

PATIENCE_S = 60.0
"""How long a study waits for one copy; a storage that is away must not end the study."""


@contextlib.contextmanager
def waiting_for_copies() -> Iterator[None]:
    """Studies that begin inside the `with` block wait for each copy of their state."""
    before = ray_storage._FilesystemSyncer
    ray_storage._FilesystemSyncer = WaitingSyncer
    try:
        yield
    finally:
        ray_storage._FilesystemSyncer = before


class WaitingSyncer(ray_storage._FilesystemSyncer):
    """Ray's copies of a study's state, one after the other with the study."""

    def sync_up(self, *arguments: Any, **keywords: Any) -> bool:
        """Starts a copy and waits for it; Ray reports its error when it starts the next."""
        started: bool = super().sync_up(*arguments, **keywords)
        if started:
            self._sync_process._process.join(PATIENCE_S)
        return started
