"""The notice to leave: SIGTERM, by which a spot machine or a job scheduler says that the process will soon be killed."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_asked = threading.Event()


def listen() -> None:
    """From now on SIGTERM does nothing to this process but to make `given` true; for the main thread to call."""
    signal.signal(signal.SIGTERM, _ask)


def given() -> bool:
    """Whether the process was asked to leave since it began to listen."""
    return _asked.is_set()


def _ask(number: int, frame: FrameType | None) -> None:
    _asked.set()
