"""A study: trials that belong together, with a folder, a run in MLflow and a lease that says who runs it."""

from __future__ import annotations

import json
import re
import secrets
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import tune

from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.overrides import differences, flatten
from kiloseg.storage.credentials import require_no_credentials
from kiloseg.storage.filesystems import Folder, LocalFolder, inside, open_folder
from kiloseg.storage.lease import Lease
from kiloseg.tracking.delivery import Outbox, OutboxRun
from kiloseg.tracking.runs import Tracker, source_tags
from kiloseg.tuning.cluster import PACKAGE, check_kept
from kiloseg.tuning.summary import TrialRow

PLAN = "study.json"
"""File of what a study consists of, in its folder."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """How trials are run."""

    name: str
    """Name of the experiment in MLflow and of the study's folder."""
    max_concurrent: int = 0
    """Trials at once. 0: as many as there are GPUs (or CPUs where there is no GPU) for."""
    workers: int = 1
    """Training processes a trial, each on a GPU of its own where there is one."""
    cpus_per_worker: float = 1.0
    """CPU cores a training process gets."""
    gpus_per_worker: float | None = None
    """GPUs a training process gets. None: 1 where the cluster has any when the study starts, else 0. Where workers are started
    when they are asked for say 1, and max_concurrent as well."""
    runs: str = "runs"
    """Folder for results; on a cluster one that all nodes see, such as a URL that pyarrow knows (s3://BUCKET/FOLDER)."""
    retries: int = 4
    """Times that a trial is started again after the loss of a process of its, of its node, or of data it reads, without having
    come further since the last time."""
    resume: bool = False
    """Go on with the newest study of this name instead of starting one."""

    def __post_init__(self) -> None:
        require_no_credentials("runs", self.runs)
        if self.max_concurrent < 0:
            raise ValueError(f"max_concurrent = {self.max_concurrent}: expected 1 or more, or 0 for as many as fit")
        if self.retries < 0:
            raise ValueError(f"retries = {self.retries}: expected 0 or more")
        if not self.name or set(self.name) & set("/\\'\""):
            raise ValueError(f"name = {self.name!r}: expected a word without slashes and quotes")


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A study that has ended."""

    rows: list[TrialRow]
    run: OutboxRun
    """Its parent run."""
    folder: Path
    """On this machine, for what is made of the result."""
    location: str
    """Where that folder's files end up: itself, or the study's folder at the URL of its runs."""
    seconds: float
    lease: Lease

    def finish(self) -> None:
        """Puts the folder's files where they belong, delivers what MLflow is still to get, and lets the study go."""
        place = open_folder(self.location)
        if not isinstance(place, LocalFolder):
            for file in filter(Path.is_file, self.folder.iterdir()):
                place.put(file, file.name)
        self.run.end("FINISHED")
        self.run.outbox.close()
        self.lease.release()


@dataclass(frozen=True, kw_only=True)
class BegunStudy:
    """A study that has its folders, its run in MLflow and its lease."""

    storage: str
    """Of Ray's results of all studies."""
    study_id: str
    folder: Path
    location: str
    outbox: Outbox
    lease: Lease
    at: float

    @staticmethod
    def of(study: Study, base: Config, plan: Mapping[str, Any], *, script: str, tags: Mapping[str, str]) -> BegunStudy:
        """Begins one, or takes up the newest of its name.

        Args:
            study: how.
            base: the run that trials vary.
            plan: what else makes it this study, by names, in values that JSON has.
            script: what started it, for MLflow.
            tags: of its run in MLflow.

        Raises:
            ValueError: nothing to resume, the study to resume is another, or runs at a URL without an MLflow server.
            ConnectionError: MLflow cannot be reached.
            StudyRunningError: the study to resume is being run.
        """
        at = time.perf_counter()
        runs = study.runs
        root = open_folder(runs)
        if isinstance(root, LocalFolder):
            check_kept(root.path.resolve())
            runs = str(root.path.resolve())
        storage = inside(runs, "ray")
        study_id = _newest(storage, study.name) if study.resume else _new_id(study.name)
        info = read_info(base.data.path)
        place = open_folder(inside(runs, f"studies/{study_id}"))
        plan = flatten(base) | dict(plan) | {"data digest": info.digest, "workers": study.workers}
        if study.resume:
            _check_same_study(study_id, plan, place)
        lease = Lease(place, study_id, contested=study.resume)
        if not study.resume:
            place.write(PLAN, json.dumps(plan, indent=1).encode())
        tracker = Tracker.open(study.name, Path(runs) if isinstance(place, LocalFolder) else None)
        tracked = tracker.study_run(study_id, flatten(base), source_tags(PACKAGE.parents[1], script))
        tracked.log_dataset(info.name, info.digest, base.data.path)
        tracked.set_tags({f"study.{name}": str(value) for name, value in asdict(study).items()} | dict(tags))
        folder = place.path if isinstance(place, LocalFolder) else Path(tempfile.mkdtemp(prefix="kiloseg-study-"))
        return BegunStudy(
            storage=storage,
            study_id=study_id,
            folder=folder,
            location=place.location,
            outbox=Outbox(folder, tracked, elsewhere=place),
            lease=lease,
            at=at,
        )

    @property
    def checkpoints(self) -> str:
        """Folder of all its trials' checkpoints."""
        return inside(self.storage, f"{self.study_id}/train")

    def result(self, rows: list[TrialRow]) -> StudyResult:
        """What it came to."""
        return StudyResult(
            rows=rows,
            run=self.outbox.study,
            folder=self.folder,
            location=self.location,
            seconds=time.perf_counter() - self.at,
            lease=self.lease,
        )


def _check_same_study(study_id: str, plan: Mapping[str, Any], place: Folder) -> None:
    """Ray would go on with the trials that it knows, whatever is asked for now."""
    try:
        begun = json.loads(place.read(PLAN))
    except FileNotFoundError:  # of a study that began before there was such a file
        return
    # Nor did it always tell of these.
    begun = {name: plan[name] for name in ("data digest", "workers")} | begun
    changes = differences(json.loads(json.dumps(plan)), begun)
    if changes:
        raise ValueError(
            f"--resume would go on with {study_id}, which is another study ({changes}); give its flags, or start one without "
            "--resume. Studies of different --name are resumed apart."
        )


def _new_id(name: str) -> str:
    # Two studies of one name may be started in the same second.
    # The newest is found by its name, on whatever machine.
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def _newest(storage: str, name: str) -> str:
    folder = open_folder(storage)
    identity = re.compile(re.escape(name) + r"-\d{8}-\d{6}(-[0-9a-f]{4})?")
    for found in reversed(folder.entries()):
        if identity.fullmatch(found) and tune.Tuner.can_restore(inside(storage, found)):
            return found
    raise ValueError(f"no study of the name {name!r} to resume in {folder.name}; start one without --resume")
