"""Names the files in which Ray saves a study's state. The newest is found by the time in its name, as Ray finds it.

Seen on Ray 2.60: Tune has no function that gives the newest file of a kind, and without one a study's searcher and scores cannot
be read after it has ended.

It can go when Tune gives access to them; tests/tuning/test_study_state.py tells when Ray changes these names.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

STATE = "experiment_state-*.json"
SEARCHER = "searcher-state-*.pkl"
CALLBACKS = "callback-states-*.pkl"
PICKLED = ("search_gen_state-*.json", SEARCHER, "basic-variant-state-*.json", CALLBACKS)
"""The star in these names is the time at which their process began, in UTC."""


def newest(names: Iterable[str], pattern: str) -> str | None:
    """Returns the newest of the files with a pattern; None if there is none."""
    return max(fnmatch.filter(names, pattern), default=None)
