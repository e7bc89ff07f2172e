"""Checks that there is enough shared memory, through which loader processes pass their batches, and explains errors.

Containers often have little of it: by default, Docker gives 64 MB to /dev/shm.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from kiloseg.storage.errors import DataError

FOLDER = "/dev/shm"  # noqa: S108
"""The folder in which Linux keeps shared memory."""

NO_ROOM = ("No space left on device", "unable to allocate shared memory", "Bus error", "Cannot allocate memory")
"""Parts of the messages that torch gives when shared memory is full."""


def require_room(num_bytes: int, settings: str) -> None:
    """Raises an error if a size does not fit into the shared memory that is free now.

    Args:
        num_bytes: the number of bytes that loader processes need at the same time.
        settings: names of the settings that decide this size, for the message.

    Raises:
        DataError: less shared memory is free. Systems without /dev/shm are not checked.
    """
    try:
        free = os.statvfs(FOLDER)
    except OSError:
        return
    free_bytes = free.f_bavail * free.f_frsize
    if num_bytes > free_bytes:
        raise DataError(
            _message(
                f"{FOLDER} has {free_bytes / 2**20:.1f} MiB free, but up to {num_bytes / 2**20:.1f} MiB are needed",
                settings,
            )
        )


@contextlib.contextmanager
def naming_settings(settings: str) -> Iterator[None]:
    """Turns torch's errors about full shared memory into one that names the settings.

    Raises:
        DataError: torch reported that shared memory is full.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if not any(text in str(error) for text in NO_ROOM):
            raise
        raise DataError(_message(f"{FOLDER} is full ({str(error).splitlines()[0]})", settings)) from error


def _message(found: str, settings: str) -> str:
    return (
        f"{found}, but the loader processes need it for batches: lower {settings}, use data.loader_workers = 0, or give "
        "the container more (docker run --shm-size=2g)"
    )
