"""States of a study are named by UTC, so that the newest by name is the newest in time.

Seen on Ray 2.60: Tune names a study's state by the local time at which the process that writes it began, and resumes from
the last name. Local times of two machines, or of summer and winter, are in no order, so that an old state may be taken.

It can go when tests/tuning/test_resumption.py passes without `utc`: its studies are resumed in another time zone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator


@contextlib.contextmanager
def utc() -> Iterator[None]:
    """This process tells the time in UTC inside the `with` block. No effect on Windows, which has no such setting."""
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
