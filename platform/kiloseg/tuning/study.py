"""A study: trials that belong together, with a folder, a run in MLflow and a lease that says who runs it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.overrides import flatten
from kiloseg.storage.credentials import require_no_credentials
from kiloseg.storage.filesystems import Folder, LocalFolder, inside, open_folder
from kiloseg.storage.lease import Lease
from kiloseg.tracking.delivery import Delivery, RunWriter
from kiloseg.tracking.runs import Tracker, source_tags
from kiloseg.tuning.cluster import PACKAGE, check_kept, ray_connection
from kiloseg.tuning.identity import check_same_study, new_id, newest_id, write_plan
from kiloseg.tuning.trial_row import TrialRow


@dataclass(frozen=True, kw_only=True)
class Study:
    """How trials are run."""

    name: str
    """Name of the experiment in MLflow, and of the study's folder."""
    max_concurrent: int = 0
    """Trials at once. 0: as many as there are GPUs (or CPUs where there is no GPU) for."""
    workers: int = 1
    """Training processes of a trial, each on a GPU of its own where there is one."""
    cpus_per_worker: float = 1.0
    """CPU cores of a training process."""
    gpus_per_worker: float | None = None
    """GPUs of a training process. None: 1 where the cluster has any when the study starts, else 0. Where nodes are started on
    demand, give 1, and max_concurrent too."""
    runs: str = "runs"
    """Folder for results; on a cluster one that all nodes see, such as a URL that pyarrow knows (s3://BUCKET/FOLDER)."""
    retries: int = 4
    """How often a trial is started again after it lost a process, its node or data that it reads, without having come further
    since the last time."""
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
    """The trials of a study, once they have ended. Inside the study's `with` block files and runs may be added to it."""

    rows: list[TrialRow]
    run: RunWriter
    """The study's run in MLflow."""
    folder: Path
    """Folder on this machine for files that are made of the result."""
    location: str
    """Where that folder's files end up: the folder itself, or the study's folder at the URL of its runs."""
    seconds: float
    """From the start of the study, or of its resumption, to the end of its last trial."""


class RunningStudy:
    """A study that this process runs: it has its folders, its run in MLflow and its lease. See `running_study`."""

    def __init__(
        self,
        *,
        study_id: str,
        storage: str,
        place: Folder,
        folder: Path,
        delivery: Delivery,
        resources: contextlib.ExitStack,
    ) -> None:
        self.study_id = study_id
        self.storage = storage
        """Folder of Ray's results of all studies, by path or URL."""
        self.place = place
        """The study's own folder, for what is made of its results."""
        self.folder = folder
        """That folder, or one in its place where it is not on this machine."""
        self.delivery = delivery
        """The way to MLflow."""
        self.has_trials = False
        """Whether there is something that --resume would go on with."""
        self._resources = resources
        self._began = time.perf_counter()

    @property
    def checkpoints(self) -> str:
        """Folder of all trials' checkpoints, by path or URL."""
        return inside(self.storage, f"{self.study_id}/train")

    @property
    def state(self) -> str:
        """Folder in which Ray keeps the study, by path or URL."""
        return inside(self.storage, self.study_id)

    def connect_to_ray(self) -> None:
        """Connects to Ray, or starts it, until the end of the study."""
        self._resources.enter_context(ray_connection())

    def result(self, rows: list[TrialRow]) -> StudyResult:
        """The study's result, of these trials."""
        return StudyResult(
            rows=rows,
            run=self.delivery.study,
            folder=self.folder,
            location=self.place.location,
            seconds=time.perf_counter() - self._began,
        )

    def publish(self) -> None:
        """Copies the folder's files to where the study's results belong."""
        if not isinstance(self.place, LocalFolder):
            for file in filter(Path.is_file, self.folder.iterdir()):
                self.place.put(file, file.name)


@contextlib.contextmanager
def running_study(
    study: Study, base: Config, plan: Mapping[str, Any], *, script: str, tags: Mapping[str, str]
) -> Iterator[RunningStudy]:
    """Begins a study, or takes up the newest of its name, for the time of a `with` block.

    At the end of the block, however it comes, Ray is let go of, what MLflow has not got yet is delivered, the study's run is
    ended, and the lease is released, in this order.

    Args:
        study: how trials are run.
        base: the run that trials vary.
        plan: what else makes it this study, by names, in values that JSON has.
        script: what started it, for MLflow.
        tags: tags of its run in MLflow.

    Raises:
        ValueError: nothing to resume, the study to resume is another, or runs at a URL without an MLflow server.
        ConnectionError: MLflow cannot be reached.
        StudyRunningError: the study to resume is being run.
    """
    runs = study.runs
    root = open_folder(runs)
    if isinstance(root, LocalFolder):
        check_kept(root.path.resolve())
        runs = str(root.path.resolve())
    storage = inside(runs, "ray")
    study_id = newest_id(storage, study.name) if study.resume else new_id(study.name)
    info = read_info(base.data.path)
    place = open_folder(inside(runs, f"studies/{study_id}"))
    plan = flatten(base) | dict(plan) | {"data digest": info.digest, "workers": study.workers}
    if study.resume:
        check_same_study(study_id, plan, place)
    with contextlib.ExitStack() as resources:
        lease = resources.enter_context(Lease(place, study_id, contested=study.resume))
        if not study.resume:
            write_plan(plan, place)
        tracker = Tracker.open(study.name, Path(runs) if isinstance(place, LocalFolder) else None)
        tracked = tracker.study_run(study_id, flatten(base), source_tags(PACKAGE.parents[1], script))
        tracked.log_dataset(info.name, info.digest, base.data.path)
        tracked.set_tags({f"study.{name}": str(value) for name, value in asdict(study).items()} | dict(tags))
        folder = place.path if isinstance(place, LocalFolder) else Path(tempfile.mkdtemp(prefix="kiloseg-study-"))
        delivery = resources.enter_context(Delivery(folder, tracked, elsewhere=place))
        running = RunningStudy(
            study_id=study_id, storage=storage, place=place, folder=folder, delivery=delivery, resources=resources
        )
        running.has_trials = study.resume
        try:
            yield running
            running.publish()
        except BaseException as error:
            if running.has_trials:
                error.add_note(f"what study {study_id} has computed is kept: --resume goes on with it")
            if lease.lost:  # to a process that goes on with the study, and with its run
                delivery.close(patience_s=0)
            else:
                delivery.study.end("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        delivery.study.end("FINISHED")
