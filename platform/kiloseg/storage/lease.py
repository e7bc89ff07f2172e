"""Who runs a study: a small file in its folder, renewed while the process lives, so that two never write into one study."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from kiloseg.storage.filesystems import Folder

logger = logging.getLogger(__name__)

FILE = "running.json"
RENEWED_EVERY_S = 10.0
LAPSES_AFTER_S = 60.0
WATCHED_S = 2.5 * RENEWED_EVERY_S
"""For as long a lease of another machine that seems to have lapsed is watched, since the clocks of two machines differ."""
SETTLES_S = 1.0
"""For as long two that take the same lease at once may not see each other's."""


class StudyRunningError(RuntimeError):
    """Another process runs the study."""


class Lease:
    """Holds a study for this process until `release`, or until it dies.

    A process that was away for so long that another took the study over (suspended, or cut off from the storage) ends by
    SIGTERM as soon as it sees that.

    Args:
        folder: the study's.
        name: the study's, for messages.
        contested: others may want it as well, as what is resumed and not begun.

    Raises:
        StudyRunningError: another process holds it: one that lives on this machine, or one of another machine that gives signs
            of life, the last of them within a minute.
    """

    def __init__(self, folder: Folder, name: str, *, contested: bool) -> None:
        self._folder = folder
        self._name = name
        self.lost = False
        """Whether another process has taken the study over."""
        _check_free(folder, name)
        self._token = f"{_machine()} {os.getpid()} {time.time_ns()}"
        with contextlib.suppress(FileNotFoundError):  # another took it from below this one's hands
            self._renew()
        if contested:
            time.sleep(SETTLES_S)
        holder = _read(folder)
        if holder is None or holder["token"] != self._token:
            raise StudyRunningError(f"study {name} was taken over by another process at the same moment; {_MEND}")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Lets the study go."""
        self._ended.set()
        self._thread.join()
        holder = _read(self._folder)
        if holder is not None and holder["token"] == self._token:
            self._folder.remove(FILE)

    def _keep(self) -> None:
        while not self._ended.wait(RENEWED_EVERY_S):
            try:
                holder = _read(self._folder)
                if holder is not None and holder["token"] != self._token:
                    logger.error(
                        "study %s was taken over by process %s on %s", self._name, holder["pid"], holder["host"]
                    )
                    self.lost = True
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self._renew()
            except OSError as error:  # a full disk, or a server that is away
                logger.warning("%s cannot be renewed (%s)", self._folder.at(FILE), error)

    def _renew(self) -> None:
        pid = os.getpid()
        sign = {
            "token": self._token,
            "host": _machine(),
            "pid": pid,
            "began": _began(pid),
            "time": time.time(),
        }
        self._folder.write(FILE, json.dumps(sign).encode())


_MEND = "wait for it to end, or start a study of your own without --resume"


def _check_free(folder: Folder, name: str) -> None:
    holder = _read(folder)
    if holder is None:
        return
    host, pid = holder["host"], holder["pid"]
    if host == _machine():
        # A number that was given to another process since tells itself by its start.
        if pid == os.getpid() or _began(pid) != holder["began"]:
            return
        raise StudyRunningError(f"study {name} is being run by process {pid} of this machine; {_MEND}")
    age = time.time() - holder["time"]
    if age < LAPSES_AFTER_S:
        raise StudyRunningError(
            f"study {name} is being run by process {pid} on {host}, which was alive {age:.0f} s ago; {_MEND}; if that "
            f"machine is gone, try again in {LAPSES_AFTER_S - age:.0f} s"
        )
    logger.warning("study %s was run by process %s on %s; is it still? (%.0f s)", name, pid, host, WATCHED_S)
    ends = time.monotonic() + WATCHED_S
    while time.monotonic() < ends:
        time.sleep(1)
        if _read(folder) not in (holder, None):
            raise StudyRunningError(
                f"study {name} is being run by process {pid} on {host}, whose clock is {age:.0f} s behind; {_MEND}"
            )


def _read(folder: Folder) -> dict[str, Any] | None:
    try:
        return json.loads(folder.read(FILE))
    except (FileNotFoundError, ValueError):
        return None


def _machine() -> str:
    """Where a process number means this process: containers on one machine have numbers of their own."""
    return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the machine started; None where there is none of that number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None
