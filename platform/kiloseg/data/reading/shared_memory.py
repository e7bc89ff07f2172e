"""Checks that there is enough shared memory, through which loader processes pass their batches, and explains errors.

Containers often have little of it: by default, Docker gives 64 MB to /dev/shm.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator

from kiloseg.storage.errors import DataError

FOLDER = "/dev/shm"  # noqa: S108
"""The folder in which Linux keeps shared memory."""

NO_ROOM = ("No space left on device", "unable to allocate shared memory", "Bus error", "Cannot allocate memory")
"""Parts of the messages that torch gives when shared memory is full."""


TRIALS_VARIABLE = "KILOSEG_TRIALS_PER_NODE"
"""Environment variable with the number of trials that a study runs on this machine at once."""


def sharing_processes() -> int:
    """Returns how many training processes share this machine's memory: the workers of a group, times the trials at once."""
    return math.prod(max(int(os.environ.get(name, "1")), 1) for name in ("LOCAL_WORLD_SIZE", TRIALS_VARIABLE))


def require_room(num_bytes: int, settings: str) -> None:
    """Raises an error if a size does not fit into the shared memory that is free now, or all processes' sizes into the whole.

    Other training processes may already hold their part or not yet, so theirs is compared with the whole shared memory.

    Args:
        num_bytes: the number of bytes that this process's loader processes need at the same time.
        settings: names of the settings that decide this size, for the message.

    Raises:
        DataError: there is less shared memory. Systems without /dev/shm are not checked.
    """
    try:
        free = os.statvfs(FOLDER)
    except OSError:
        return
    free_bytes, whole_bytes = free.f_bavail * free.f_frsize, free.f_blocks * free.f_frsize
    sharing = sharing_processes()
    if num_bytes * sharing > whole_bytes >= num_bytes:
        raise DataError(
            _message(
                f"{FOLDER} has {whole_bytes / 2**20:.1f} MiB, {sharing} training processes of this machine need up to "
                f"{num_bytes / 2**20:.1f} each",
                settings,
            )
        )
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
