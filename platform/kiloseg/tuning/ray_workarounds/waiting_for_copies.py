"""Makes a study wait until its state is copied before it writes the next state.

Seen on Ray 2.60: Tune copies the state to the study's storage in a separate thread, while the study may overwrite the state that
is being read with the next one. If the storage is slow enough for that, a file becomes half of one state and half of the other,
and the study cannot be resumed from it.

It can go when tests/tuning/test_staging.py passes without `waiting_for_copies`: it compares every copy with its source.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ray.train._internal import storage as ray_storage

PATIENCE_S = 60.0
"""How many seconds a study waits for one copy; an unreachable storage must not end the study."""


@contextlib.contextmanager
def waiting_for_copies() -> Iterator[None]:
    """Makes studies that begin inside the `with` block wait for each copy of their state."""
    before = ray_storage._FilesystemSyncer
    ray_storage._FilesystemSyncer = WaitingSyncer
    try:
        yield
    finally:
        ray_storage._FilesystemSyncer = before


class WaitingSyncer(ray_storage._FilesystemSyncer):
    """Ray's copier of a study's state, but the study waits for each copy."""

    def sync_up(self, *arguments: Any, **keywords: Any) -> bool:
        """Starts a copy and waits for it; Ray reports its error when it starts the next copy."""
        started: bool = super().sync_up(*arguments, **keywords)
        if started:
            self._sync_process._process.join(PATIENCE_S)
        return started
