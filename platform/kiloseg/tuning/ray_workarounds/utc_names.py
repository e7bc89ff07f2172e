"""Names the states of a study by the time in UTC, so that the last by name is the newest.

Seen on Ray 2.60: Tune names a study's state by the local time at which the process that writes it began, and resumes from
the last name. Local times on two machines, or before and after a clock change, are not in order, so Tune may use an old state.

It can go when tests/tuning/test_resumption.py passes without `utc`: its studies are resumed in another time zone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator


@contextlib.contextmanager
def utc() -> Iterator[None]:
    """Makes this process use UTC as its local time inside the `with` block. Has no effect on Windows, which has no `tzset`."""
    if not hasattr(time, "tzset"):
        yield
        return
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        del os.environ["TZ"]
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()
