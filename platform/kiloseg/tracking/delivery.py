"""Delivers a study's reports to MLflow in the background, so that an unreachable server costs neither time nor numbers.

Every report is first written to a file (`kiloseg.tracking.messages`). A thread delivers the messages in order and retries as
long as the server is unreachable. After a crash a message may be delivered twice, which does no harm: metrics that a run
already has at a step are skipped, and everything else replaces the earlier value.
"""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kiloseg.storage.filesystems import Folder
from kiloseg.tracking.advice import is_deleted
from kiloseg.tracking.messages import MessageQueue
from kiloseg.tracking.runs import TrackedRun, Tracker, is_refusal

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 20.0
"""Longest pause in seconds between two attempts to reach an unreachable server."""
PATIENCE_S = 60.0
"""How many seconds a study waits for the server when it ends normally."""
INTERRUPTED_PATIENCE_S = 5.0
"""How many seconds a study waits for the server when it ends with an error or an interruption."""
JOIN_S = 5.0
"""How many seconds a closing delivery waits for a message that is being sent."""
ATTEMPTS = 6
"""How often a message is tried that the server may never accept, while it answers other requests, before it is dropped."""
ARTIFACTS = ("table", "file")
"""Kinds of messages that may be stored apart from the server's numbers, in a store that may report any error."""

Point = tuple[str, float, int]
"""The name, value and step of a metric."""


class Delivery:
    """Delivers the messages of one study to MLflow. One process at a time may use it; any of its threads may write.

    As a context manager it delivers the remaining messages and closes on exit; after an error it waits only briefly.

    Args:
        folder: the study's own folder on this machine, for the file of messages.
        study: the study's run.
        elsewhere: the study's folder if that is not on this machine; undelivered messages are copied there.
        alone: whether the study is a single run. Its numbers are then kept like a trial's: the first value at a step counts.
    """

    def __init__(
        self, folder: Path, study: TrackedRun, *, elsewhere: Folder | None = None, alone: bool = False
    ) -> None:
        self._study = study
        self._alone = alone
        self._trials: dict[str, TrackedRun] = {}
        self._known: dict[str | None, set[tuple[str, int]]] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._away_since: float | None = None
        self._queue = MessageQueue(folder, elsewhere)
        self._thread = threading.Thread(target=self._deliver, name="delivery", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(PATIENCE_S if error is None else INTERRUPTED_PATIENCE_S)

    @property
    def path(self) -> Path:
        """Path of the file of messages."""
        return self._queue.path

    def trial(self, name: str) -> RunWriter:
        """Returns a writer to the run of a trial, by the trial's name."""
        return RunWriter(delivery=self, trial=name)

    @property
    def study(self) -> RunWriter:
        """A writer to the run of the study itself."""
        return RunWriter(delivery=self, trial=None)

    @property
    def study_run(self) -> TrackedRun:
        """The run of the study itself, for what is written at once."""
        return self._study

    @property
    def tracker(self) -> Tracker:
        """The tracker to which messages are delivered."""
        return self._study.tracker

    def put(self, message: Mapping[str, Any]) -> None:
        """Stores a message and returns at once; it is delivered as soon as the server accepts it."""
        with self._changed:
            self._queue.append(message)
            self._changed.notify_all()

    def flush(self, patience_s: float = PATIENCE_S) -> bool:
        """Waits up to `patience_s` seconds until everything is delivered; returns whether it is."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue, timeout=patience_s)
            return not self._queue

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Delivers the remaining messages within `patience_s` seconds, else logs which file keeps the undelivered ones."""
        if self._stopped:
            return
        delivered = self.flush(patience_s)
        with self._changed:
            left = len(self._queue)
            self._stopped = True
            self._changed.notify_all()
            lines = self._queue.undelivered()
            self._queue.close()
        # Sending a message to an unreachable server may take longer than anyone should wait.
        self._thread.join(JOIN_S)
        atexit.unregister(self.close)
        if not delivered:
            self._queue.copy_elsewhere(lines)
            logger.warning(
                "MLflow at %s has not accepted %d messages; they are kept in %s, and --resume delivers them",
                self.tracker.shown,
                left,
                self._queue.location,
            )

    def _deliver(self) -> None:
        pause = 0.5
        attempts = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopped)
                if self._stopped:
                    return
                message = self._queue.first()
            try:
                self._send(message)
            except Exception as error:
                deleted = is_deleted(error)  # it waits, as a restored run accepts it
                doubtful = not deleted and (message["kind"] in ARTIFACTS or is_refusal(error, perhaps=True))
                # Attempts count only while the server answers other requests: it may be unreachable for a long time.
                attempts = attempts + 1 if doubtful and self._study.answers() else 0
                if deleted or (not is_refusal(error) and attempts < ATTEMPTS):
                    self._note_away(error)
                    with self._changed:
                        self._changed.wait_for(lambda: self._stopped, timeout=pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                    continue
                logger.warning(
                    "MLflow refuses %s of trial %s: %s", message["kind"], message["trial"], self._without_address(error)
                )
            pause, attempts = 0.5, 0
            self._note_back()
            with self._changed:
                self._queue.delivered()
                self._changed.notify_all()
                empty = not self._queue
            if empty:
                self._queue.remove_copy()

    def _without_address(self, error: Exception) -> str:
        """Returns the text of an MLflow error with the server's address, which may hold a password, replaced."""
        return str(error).replace(self.tracker.uri, self.tracker.shown)

    def _note_away(self, error: Exception) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            if is_deleted(error):
                logger.warning(
                    "the run was deleted in MLflow; its numbers wait in %s until it is restored: %s",
                    self.path,
                    self._study.restore_command(),
                )
                return
            logger.warning(
                "MLflow at %s does not answer (%s); the study continues, and its numbers wait in %s",
                self.tracker.shown,
                self._without_address(error).partition("\n")[0][:200],
                self.path,
            )
        with self._changed:
            lines = self._queue.undelivered()
        self._queue.copy_elsewhere(lines)

    def _note_back(self) -> None:
        if self._away_since is not None:
            logger.warning(
                "MLflow answers again after %.0f s; the waiting numbers are delivered",
                time.monotonic() - self._away_since,
            )
            self._away_since = None

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
        if trial not in self._trials:  # the trial began before a crash
            self._trials[trial] = self.tracker.trial_run(self._study, trial, {}, {})
        return self._trials[trial]

    def _send_metrics(self, run: TrackedRun, trial: str | None, points: Sequence[Point], time_ms: int) -> None:
        # For a study the later value counts, and MLflow itself drops one that has the same time.
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
class RunWriter:
    """Writes to one run of a study. Every call returns at once and never waits for MLflow."""

    delivery: Delivery
    trial: str | None
    """The trial's name; None for the study's own run."""

    @property
    def tracker(self) -> Tracker:
        """The tracker that keeps the run."""
        return self.delivery.tracker

    def begin(self, params: Mapping[str, Any], tags: Mapping[str, str] | None = None) -> None:
        """Creates the run of a trial, or finds the existing one."""
        self._put("begin", params={name: str(value) for name, value in params.items()}, tags=dict(tags or {}))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Logs metrics at a step."""
        self.log_points([(name, value, step) for name, value in metrics.items()])

    def log_points(self, points: Sequence[Point]) -> None:
        """Logs metrics at several steps; values that are not finite are skipped because charts cannot show them."""
        finite = [(name, float(value), step) for name, value, step in points if math.isfinite(value)]
        self._put("metrics", points=finite, time_ms=int(time.time() * 1000))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags, which the UI can filter by."""
        self._put("tags", tags=dict(tags))

    def log_table(self, columns: Mapping[str, list[Any]], file: str) -> None:
        """Logs a table artifact (JSON), which the UI shows and compares."""
        self._put("table", columns=dict(columns), file=file)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Logs a file as an artifact; the file must not move until it is delivered."""
        self._put("file", path=str(path), folder=folder)

    def end(self, status: str) -> None:
        """Ends the run as "FINISHED", "FAILED" or "KILLED"."""
        self._put("end", status=status)

    def _put(self, kind: str, **more: Any) -> None:
        self.delivery.put({"kind": kind, "trial": self.trial, **more})
