"""Keeps messages for MLflow in a file, so that none is lost if the server is unreachable or the process dies.

Every message is appended to `outbox.jsonl` as a line of JSON before anything else happens to it; `outbox.delivered` holds
the number of bytes that were delivered. The next process that opens the folder finds the undelivered messages.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiloseg.storage.atomic import write_whole
from kiloseg.storage.filesystems import Folder, LocalFolder

logger = logging.getLogger(__name__)

LINES = "outbox.jsonl"
DELIVERED = "outbox.delivered"


class MessageQueue:
    """A first-in, first-out queue of JSON messages that outlives its process. Not thread-safe: its owner holds a lock.

    Args:
        folder: the study's own folder on this machine; created if it is missing.
        elsewhere: the study's folder if that is not on this machine; `copy_elsewhere` puts undelivered messages there, and
            they are read from there if `folder` has no file of messages.
    """

    def __init__(self, folder: Path, elsewhere: Folder | None = None) -> None:
        self.path = folder / LINES
        self._mark = folder / DELIVERED
        self._elsewhere = None if isinstance(elsewhere, LocalFolder) else elsewhere
        self._copied = False
        self._waiting: deque[tuple[dict[str, Any], int]] = deque()
        """The undelivered messages, each with the position of its end in the file, in bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        self._read_undelivered()
        # Unbuffered, because bytes that could not be written must not reappear with the next line or on closing.
        self._file = self.path.open("ab", buffering=0)
        self._end = self.path.stat().st_size
        """Size in bytes of the part of the file that holds whole lines."""

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def location(self) -> str:
        """The place where undelivered messages are kept, as text for people."""
        return self._elsewhere.at(LINES) if self._elsewhere else str(self.path)

    def append(self, message: Mapping[str, Any]) -> None:
        """Writes a message to the file and queues it. If the disk is full, it is queued anyway, with a warning."""
        line = json.dumps(message).encode() + b"\n"
        before = self._end
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
            self._end += len(line)
        except OSError as error:
            logger.warning("%s cannot be written (%s): free some disk space", self.path, error)
            with contextlib.suppress(OSError):  # removes a partial line, to which the next would be appended
                os.truncate(self.path, before)
        self._waiting.append((dict(message), self._end))

    def first(self) -> dict[str, Any]:
        """Returns the oldest undelivered message; there must be one."""
        return self._waiting[0][0]

    def delivered(self) -> None:
        """Removes the oldest message from the queue and records how far delivery has progressed."""
        _, end = self._waiting.popleft()
        with contextlib.suppress(OSError):  # an outdated mark only causes a second delivery, which does no harm
            write_whole(self._mark, str(end).encode())

    def undelivered(self) -> bytes:
        """Returns the undelivered messages as lines of JSON."""
        return b"".join(json.dumps(message).encode() + b"\n" for message, _ in self._waiting)

    def copy_elsewhere(self, lines: bytes) -> None:
        """Copies undelivered lines to the study's folder on another machine, if it has one; needs no lock."""
        if self._elsewhere is not None:
            with contextlib.suppress(OSError):
                self._elsewhere.write(LINES, lines)
                self._copied = True

    def remove_copy(self) -> None:
        """Removes the copy on another machine once everything is delivered; needs no lock."""
        if self._copied and self._elsewhere is not None:
            with contextlib.suppress(OSError):
                self._elsewhere.remove(LINES)
                self._copied = False

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read_undelivered(self) -> None:
        if self._elsewhere is not None and not self.path.exists():
            with contextlib.suppress(FileNotFoundError):
                self.path.write_bytes(self._elsewhere.read(LINES))
                self._copied = True
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1  # a crash may have cut the last line short
        if whole < len(content):
            os.truncate(self.path, whole)
        end = min(self._read_mark(), whole)
        for line in content[end:whole].splitlines(keepends=True):
            end += len(line)
            try:
                self._waiting.append((json.loads(line), end))
            except ValueError:
                logger.warning("%s: the line that ends at byte %d is damaged and is left out", self.path, end)

    def _read_mark(self) -> int:
        try:
            return int(self._mark.read_text())
        except (FileNotFoundError, ValueError):
            return 0
