"""Holds a lease on a study, so that two processes never write into one study.

The lease is a small file in the study's folder that is renewed while its process lives.
"""

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
from types import TracebackType
from typing import Any, Self

from kiloseg.storage.filesystems import Folder

logger = logging.getLogger(__name__)

FILE = "running.json"
RENEWED_EVERY_S = 10.0
LAPSES_AFTER_S = 60.0
WATCHED_S = 2.5 * RENEWED_EVERY_S
"""Seconds for which another machine's apparently expired lease is watched, since the clocks of two machines differ."""
SETTLES_S = 1.0
"""Seconds for which two processes that take the same lease at the same time may not see each other's lease."""
SAME_START_S = 2.0
"""Start times that differ by less than this many seconds mean the same process, since they come from the machine's clock."""


class StudyRunningError(RuntimeError):
    """Raised if another process runs the study."""


class Lease:
    """Holds a study for this process until `release`, the end of its `with` block, or the death of the process.

    A process that was suspended or cut off from the storage for so long that another process took over the study ends
    itself by SIGTERM as soon as it notices that.

    Args:
        folder: the study's folder.
        name: the study's name, for messages.
        contested: whether other processes may take the lease at the same time, for example when a study is resumed.

    Raises:
        StudyRunningError: another process holds the lease. It is alive on this machine, or is on another machine and renewed
            its lease within the last minute.
    """

    def __init__(self, folder: Folder, name: str, *, contested: bool) -> None:
        self._folder = folder
        self._name = name
        self.lost = False
        """Whether another process has taken over the study."""
        _check_free(folder, name)
        self._token = f"{_machine()} {os.getpid()} {time.time_ns()}"
        with contextlib.suppress(FileNotFoundError):  # another process has removed the file
            self._renew()
        if contested:
            time.sleep(SETTLES_S)
        holder = _read(folder)
        if holder is None or holder["token"] != self._token:
            raise StudyRunningError(f"study {name} was taken over by another process at the same moment; {_REMEDY}")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Releases the study, so that another process may run it."""
        self._ended.set()
        self._thread.join()
        try:
            holder = _read(self._folder)
            if holder is not None and holder["token"] == self._token:
                self._folder.remove(FILE)
        except OSError as error:  # the storage is unavailable; the lease expires by itself
            logger.warning("%s cannot be removed (%s); it expires in a minute", self._folder.at(FILE), error)

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
            except OSError as error:  # the disk is full, or a server is unavailable
                logger.warning("%s cannot be renewed (%s)", self._folder.at(FILE), error)

    def _renew(self) -> None:
        pid = os.getpid()
        sign = {
            "token": self._token,
            "host": _machine(),
            "pid": pid,
            "create_time": _create_time(pid),
            "time": time.time(),
        }
        self._folder.write(FILE, json.dumps(sign).encode())


def is_held(folder: Folder) -> bool:
    """Returns whether a process seems to hold the lease of a study's folder: it lives, or renewed its lease within a minute."""
    holder = _read(folder)
    if holder is None:
        return False
    age_s = time.time() - holder["time"]
    return not _is_gone(holder, age_s) if holder["host"] == _machine() else age_s < LAPSES_AFTER_S


_REMEDY = "wait for it to end, or start your own study without --resume"


def _check_free(folder: Folder, name: str) -> None:
    holder = _read(folder)
    if holder is None:
        return
    host, pid = holder["host"], holder["pid"]
    age = time.time() - holder["time"]
    if host == _machine():
        if pid == os.getpid() or _is_gone(holder, age):
            return
        raise StudyRunningError(f"study {name} is being run by process {pid} of this machine; {_REMEDY}")
    if age < LAPSES_AFTER_S:
        raise StudyRunningError(
            f"study {name} is being run by process {pid} on {host}, which renewed its lease {age:.0f} s ago; {_REMEDY}; if that "
            f"machine is gone, try again in {LAPSES_AFTER_S - age:.0f} s"
        )
    logger.warning(
        "study %s was run by process %s on %s; waiting %.0f s to see whether it is still running",
        name,
        pid,
        host,
        WATCHED_S,
    )
    ends = time.monotonic() + WATCHED_S
    while time.monotonic() < ends:
        time.sleep(1)
        if _read(folder) not in (holder, None):
            raise StudyRunningError(
                f"study {name} is being run by process {pid} on {host}, whose clock is {age:.0f} s behind; {_REMEDY}"
            )


def _is_gone(holder: dict[str, Any], age_s: float) -> bool:
    """Returns whether the process of this machine that wrote a lease `age_s` seconds ago has ended."""
    began = _create_time(holder["pid"])
    if began is None:
        return True
    known = holder.get("create_time")
    if known is not None and abs(began - known) < SAME_START_S:
        return False
    # Another process may have the same number now, or the clock may have been set; a lease in use is still renewed.
    return age_s >= LAPSES_AFTER_S


def _read(folder: Folder) -> dict[str, Any] | None:
    try:
        return json.loads(folder.read(FILE))
    except (FileNotFoundError, ValueError):
        return None


def _machine() -> str:
    """Returns a name for the scope of process numbers: this machine, or on Linux one container of it."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.stat().st_ino if namespace.exists() else 0}"


def _create_time(pid: int) -> float | None:
    """Returns when a process started, in seconds since 1970; None if no process with that number is alive."""
    import psutil  # slow to import, and not needed for reading data sets

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
