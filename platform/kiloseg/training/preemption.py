"""Handles preemption: a spot machine or a job scheduler announces by SIGTERM that it will soon end the process."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_requested = threading.Event()


class PreemptedError(RuntimeError):
    """Raised if training ended early on request, after it wrote a checkpoint.

    Attributes:
        step: number of optimization steps taken.
        checkpoint: path or URL of the checkpoint to resume from; None in all workers but rank 0, which wrote it.
    """

    def __init__(self, step: int, checkpoint: str | None) -> None:
        super().__init__(f"preempted after step {step}; resume from {checkpoint or 'the checkpoint of rank 0'}")
        self.step = step
        self.checkpoint = checkpoint

    def __reduce__(self) -> tuple[type[PreemptedError], tuple[int, str | None]]:
        """Pickles both attributes, since exceptions otherwise pickle only their message."""
        return PreemptedError, (self.step, self.checkpoint)


def install_handler() -> None:
    """Makes SIGTERM set `requested` to True instead of ending this process. The main thread must call this."""
    signal.signal(signal.SIGTERM, _request)


def requested() -> bool:
    """Returns whether the process has received SIGTERM since the handler was installed."""
    return _requested.is_set()


def _request(number: int, frame: FrameType | None) -> None:
    _requested.set()
