"""Keeps what Ray prints at the start of every study off the screen, where it reads like a warning.

Seen on Ray 2.60: a local cluster says that token authentication is on, which is as it should be; with `verbose=0` Tune still prints
a box with the names of its own classes, and the folder in which it keeps its state.

It can go when tests/tuning/test_live_table.py::test_a_search_prints_nothing_of_ray passes without it.
"""

from __future__ import annotations

import logging

QUIET_VARIABLES = {"RAY_AIR_NEW_OUTPUT": "0"}
"""Variables to set in the driver before a study runs: Tune's older output prints nothing with `verbose=0`."""


def hide_token_message() -> None:
    """Hides the message that token authentication is on; to be called before Ray starts."""
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
