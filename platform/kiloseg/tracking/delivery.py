"""What a study has to say to MLflow, kept in a file until it is delivered: a server that is gone costs nothing.

Whatever is written is a line of JSON at the end of `outbox.jsonl` first. A thread delivers the lines in their order, tries
again for as long as the server is away, and writes down in `outbox.delivered` how far it came. After a death the next
process goes on from there. A line may then be delivered a second time, which changes nothing: metrics that a run already
has at a step are left out, and all else replaces what is there.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiloseg.storage.atomic import write_whole
from kiloseg.storage.filesystems import Folder, LocalFolder
from kiloseg.tracking.runs import TrackedRun, Tracker, is_refusal

logger = logging.getLogger(__name__)

LINES = "outbox.jsonl"
DELIVERED = "outbox.delivered"

LONGEST_PAUSE_S = 20.0
"""Between two attempts to reach a server that is away."""
PATIENCE_S = 60.0
"""That the end of a study waits for a server."""
ATTEMPTS = 6
"""That a message has which the server may never take, while it answers otherwise, before it is left out."""
ARTIFACTS = ("table", "file")
"""Kinds of messages that may go to another place than the server's own numbers, which may refuse them in any way."""

Point = tuple[str, float, int]
"""A metric's name, value and step."""


class Outbox:
    """Messages of one study on their way to MLflow; for one process at a time, in which any thread may write.

    Args:
        folder: the study's own on this machine, for the file.
        study: the study's run.
        elsewhere: the study's folder where that is not on this machine; gets a copy of what a server has not taken.
        alone: the study is a single run, whose numbers are kept as a trial's are: the first at a step counts.
    """

    def __init__(
        self, folder: Path, study: TrackedRun, *, elsewhere: Folder | None = None, alone: bool = False
    ) -> None:
        self.path = folder / LINES
        self._mark = folder / DELIVERED
        self._study = study
        self._alone = alone
        self._elsewhere = None if isinstance(elsewhere, LocalFolder) else elsewhere
        self._copied = False
        self._trials: dict[str, TrackedRun] = {}
        self._known: dict[str | None, set[tuple[str, int]]] = {}
        self._changed = threading.Condition()
        self._waiting: deque[tuple[dict[str, Any], int]] = deque()
        """Messages, each with the size of the file up to its end."""
        self._stopped = False
        self._away_since: float | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._read_left()
        # Without a buffer what could not be written does not come back at the next line, or at the end.
        self._file = self.path.open("ab", buffering=0)
        self._end = self.path.stat().st_size
        """Of what is written whole, in bytes."""
        self._thread = threading.Thread(target=self._deliver, name="outbox", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def trial(self, name: str) -> OutboxRun:
        """The run of a trial, by the trial's name."""
        return OutboxRun(outbox=self, trial=name)

    @property
    def study(self) -> OutboxRun:
        """The run of the study itself."""
        return OutboxRun(outbox=self, trial=None)

    @property
    def tracker(self) -> Tracker:
        """Where it all goes."""
        return self._study.tracker

    def put(self, message: Mapping[str, Any]) -> None:
        """Keeps a message and returns at once; it is delivered as soon as can be."""
        line = json.dumps(message).encode() + b"\n"
        with self._changed:
            before = self._end
            try:
                left = memoryview(line)
                while left:
                    left = left[self._file.write(left) :]
                os.fsync(self._file.fileno())
                self._end += len(line)
            except OSError as error:  # a full disk: delivered all the same, but lost with this process
                logger.warning("%s cannot be written (%s); make room", self.path, error)
                with contextlib.suppress(OSError):  # of half a line, which the next would be appended to
                    os.truncate(self.path, before)
            end = self._end
            self._waiting.append((dict(message), end))
            self._changed.notify_all()

    def flush(self, patience_s: float = PATIENCE_S) -> bool:
        """Waits until all is delivered, as long as `patience_s` at most; whether it is."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout=patience_s)
            return not self._waiting

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Delivers what is left; says what was not taken and where it is."""
        if self._stopped:
            return
        delivered = self.flush(patience_s)
        with self._changed:
            left = len(self._waiting)
            self._stopped = True
            self._changed.notify_all()
        self._file.close()
        atexit.unregister(self.close)
        if not delivered:
            self._copy_elsewhere()
            logger.warning(
                "MLflow at %s has not taken %d messages; they are kept in %s, and --resume delivers them",
                self.tracker.shown,
                left,
                self._elsewhere.at(LINES) if self._elsewhere else self.path,
            )

    def _read_left(self) -> None:
        if self._elsewhere is not None and not self.path.exists():
            with contextlib.suppress(FileNotFoundError):
                self.path.write_bytes(self._elsewhere.read(LINES))
                self._copied = True
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1  # a death may have cut the last line short
        if whole < len(content):
            os.truncate(self.path, whole)
        end = min(self._read_mark(), whole)
        for line in content[end:whole].splitlines(keepends=True):
            end += len(line)
            try:
                self._waiting.append((json.loads(line), end))
            except ValueError:
                logger.warning("%s: the line that ends at byte %d is damaged, and left out", self.path, end)

    def _read_mark(self) -> int:
        try:
            return int(self._mark.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _deliver(self) -> None:
        pause = 0.5
        attempts = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                message, end = self._waiting[0]
            try:
                self._send(message)
            except Exception as error:
                doubtful = message["kind"] in ARTIFACTS or is_refusal(error, perhaps=True)
                # Only while the server answers otherwise, as it may not for long.
                attempts = attempts + 1 if doubtful and self._study.answers() else 0
                if not is_refusal(error) and attempts < ATTEMPTS:
                    self._away(error)
                    with self._changed:
                        self._changed.wait_for(lambda: self._stopped, timeout=pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                    continue
                logger.warning(
                    "MLflow refuses %s of trial %s: %s",
                    message["kind"],
                    message["trial"],
                    str(error).replace(self.tracker.uri, self.tracker.shown),
                )
            pause, attempts = 0.5, 0
            self._back()
            with self._changed:
                self._waiting.popleft()
                with contextlib.suppress(OSError):  # a mark that is behind costs a look at what MLflow has
                    write_whole(self._mark, str(end).encode())
                self._changed.notify_all()
                empty = not self._waiting
            if empty and self._copied and self._elsewhere is not None:
                with contextlib.suppress(OSError):
                    self._elsewhere.remove(LINES)
                    self._copied = False

    def _away(self, error: Exception) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            logger.warning(
                "MLflow at %s does not answer (%s); the study goes on, its numbers wait in %s",
                self.tracker.shown,
                # MLflow's messages repeat its address, and the password in it.
                str(error).replace(self.tracker.uri, self.tracker.shown).partition("\n")[0][:200],
                self.path,
            )
        self._copy_elsewhere()

    def _back(self) -> None:
        if self._away_since is not None:
            logger.warning(
                "MLflow answers again after %.0f s; what waited is delivered", time.monotonic() - self._away_since
            )
            self._away_since = None

    def _copy_elsewhere(self) -> None:
        if self._elsewhere is None:
            return
        with self._changed:
            left = b"".join(json.dumps(message).encode() + b"\n" for message, _ in self._waiting)
        with contextlib.suppress(OSError):
            self._elsewhere.write(LINES, left)
            self._copied = True

    def _send(self, message: dict[str, Any]) -> None:
        kind, trial = message["kind"], message["trial"]
        if kind == "begin":
            self._trials[trial] = self.tracker.trial_run(self._study, trial, message["params"], message["tags"])
            self._known.pop(trial, None)
            return
        run = self._run(trial)
        if kind == "metrics":
            self._send_metrics(run, trial, message["points"], message["time_ms"])
        elif kind == "tags":
            run.set_tags(message["tags"])
        elif kind == "table":
            run.log_table(message["columns"], message["file"])
        elif kind == "file":
            run.log_file(Path(message["path"]), message["folder"])
        else:
            run.end(message["status"])
            self._known.pop(trial, None)

    def _run(self, trial: str | None) -> TrackedRun:
        if trial is None:
            return self._study
        if trial not in self._trials:  # begun before a death
            self._trials[trial] = self.tracker.trial_run(self._study, trial, {}, {})
        return self._trials[trial]

    def _send_metrics(self, run: TrackedRun, trial: str | None, points: Sequence[Point], time_ms: int) -> None:
        # Of a study a later value counts, and MLflow itself drops one that has the same time as well.
        if trial is None and not self._alone:
            run.log_points(points, time_ms)
            return
        if trial not in self._known:
            self._known[trial] = run.logged()
        known = self._known[trial]
        new = {(name, step): value for name, value, step in points if (name, step) not in known}
        run.log_points([(name, value, step) for (name, step), value in new.items()], time_ms)
        known.update(new)


@dataclass(frozen=True, kw_only=True)
class OutboxRun:
    """A run as those see it who write to it; nothing here waits for MLflow."""

    outbox: Outbox
    trial: str | None

    @property
    def tracker(self) -> Tracker:
        """Where it goes."""
        return self.outbox.tracker

    def begin(self, params: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> None:
        """Makes the run of a trial, or finds it again."""
        self._put("begin", params={name: str(value) for name, value in params.items()}, tags=dict(tags or {}))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Numbers at a step."""
        self.log_points([(name, value, step) for name, value in metrics.items()])

    def log_points(self, points: Sequence[Point]) -> None:
        """Numbers at several steps; those that are not finite are left out, since charts cannot show them."""
        finite = [(name, float(value), step) for name, value, step in points if math.isfinite(value)]
        self._put("metrics", points=finite, time_ms=int(time.time() * 1000))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Words by which the UI can filter."""
        self._put("tags", tags=dict(tags))

    def log_table(self, columns: Mapping[str, list[Any]], file: str) -> None:
        """A table artifact (JSON), which the UI shows and compares."""
        self._put("table", columns=dict(columns), file=file)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """A file as an artifact; it must stay where it is until it is delivered."""
        self._put("file", path=str(path), folder=folder)

    def end(self, status: str) -> None:
        """Ends the run as "FINISHED", "FAILED" or "KILLED"."""
        self._put("end", status=status)

    def _put(self, kind: str, **more: Any) -> None:
        self.outbox.put({"kind": kind, "trial": self.trial, **more})
