"""Runs a study: a set of trials with a folder, a run in MLflow, and a lease that records which process runs it."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.data.labeled import require_labeled
from kiloseg.overrides import flatten
from kiloseg.storage.credentials import require_no_credentials
from kiloseg.storage.filesystems import Folder, LocalFolder, inside, open_folder
from kiloseg.storage.lease import Lease
from kiloseg.tracking.delivery import Delivery, RunWriter
from kiloseg.tracking.runs import Tracker, source_tags
from kiloseg.tuning.cluster import PACKAGE, Resources, check_kept, ray_connection
from kiloseg.tuning.identity import check_same_study, new_id, newest_id, write_plan
from kiloseg.tuning.trial_row import TrialRow

if TYPE_CHECKING:
    import optuna

    from kiloseg.tuning.confirmation import Confirmation
    from kiloseg.tuning.shared_result import SharedResult


@dataclass(frozen=True, kw_only=True)
class Study:
    """The options of a study: how its trials are run."""

    name: str
    """Name of the experiment in MLflow and start of the study's id; without slashes and quotes."""
    max_concurrent: int = 0
    """How many trials run at once. 0: as many as the cluster's GPUs (or CPUs if it has no GPU) allow."""
    workers: int = 1
    """Training processes per trial; each has its own GPU if the cluster has GPUs."""
    cpus_per_worker: float = 1.0
    """CPU cores per training process."""
    gpus_per_worker: float | None = None
    """GPUs per training process; a share such as 0.25 lets trials of one worker share a GPU. None: 1 if the cluster has any
    when the study starts, else 0. If nodes are started on demand, set this to 1 and set max_concurrent too."""
    runs: str = "runs"
    """Folder for results. On a cluster all nodes must see it; it may be a URL that pyarrow supports (s3://BUCKET/FOLDER)."""
    retries: int = 4
    """How often a trial is restarted after it loses a process, its node or data that it reads, without progress since the
    previous restart; 0 or more."""
    resume: bool = False
    """Continue the newest study of this name instead of starting a new one."""

    def __post_init__(self) -> None:
        require_no_credentials("runs", self.runs)
        if self.max_concurrent < 0:
            raise ValueError(f"max_concurrent = {self.max_concurrent}: expected 1 or more, or 0 for as many as fit")
        if self.retries < 0:
            raise ValueError(f"retries = {self.retries}: expected 0 or more")
        self.resources(has_gpu=True)
        if not self.name or set(self.name) & set("/\\'\""):
            raise ValueError(f"name = {self.name!r}: expected a word without slashes and quotes")

    def resources(self, *, has_gpu: bool) -> Resources:
        """Returns the share of a cluster that each trial gets.

        Args:
            has_gpu: whether the cluster has a GPU, of which a training process gets one if nothing else was asked for.

        Raises:
            ValueError: there can be no such trial.
        """
        gpus = float(has_gpu) if self.gpus_per_worker is None else self.gpus_per_worker
        return Resources(workers=self.workers, cpus_per_worker=self.cpus_per_worker, gpus_per_worker=gpus)


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The ended trials of a study. Inside the study's `with` block, files and runs may be added to the result."""

    rows: list[TrialRow]
    run: RunWriter
    """The study's run in MLflow."""
    folder: Path
    """Folder on this machine for files that are made from the result."""
    location: str
    """Final place of that folder's files: the folder itself, or the study's folder at the URL of its runs."""
    seconds: float
    """Seconds from the start of the study, or from its resumption, to the end of its last trial."""
    sampled: optuna.Study | None = None
    """The study as Optuna knows it, with settings that were not launched; None for a grid."""
    confirmed: Sequence[Confirmation] = ()
    """The best trials of a search that were repeated with other seeds, the highest mean first."""
    shared: SharedResult | None = None
    """The trials of all drivers of a shared study; None if this one searched alone."""


class RunningStudy:
    """A study that this process runs, with its folders, its run in MLflow and its lease. See `running_study`."""

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
        """The study's own folder, for files that are made from its results."""
        self.folder = folder
        """That folder if it is on this machine, else a temporary folder in its place."""
        self.delivery = delivery
        """Delivers messages to MLflow."""
        self.continues: Mapping[str, str] = {}
        """Folders of earlier trials' checkpoints from which the trials of this part go on, as in `TrialSettings`."""
        self.has_trials = False
        """Whether there are trials that --resume could continue."""
        self._resources = resources
        self._began = time.perf_counter()

    @property
    def checkpoints(self) -> str:
        """Folder of all trials' checkpoints, by path or URL."""
        return inside(self.storage, f"{self.study_id}/train")

    @property
    def state(self) -> str:
        """Folder in which Ray saves the study's state, by path or URL."""
        return inside(self.storage, self.study_id)

    @property
    def resumable(self) -> bool:
        """Whether Ray has saved a state that it can continue from."""
        return bool(tune.Tuner.can_restore(self.state))

    def connect_to_ray(self) -> None:
        """Connects to Ray, or starts it; the connection lasts until the end of the study."""
        self._resources.enter_context(ray_connection())

    def part(self, name: str) -> RunningStudy:
        """Returns this study for further trials, whose checkpoints and Ray's state have a folder of their own."""
        part = copy.copy(self)
        part.study_id = f"{self.study_id}.{name}"
        return part

    def parts(self, prefix: str) -> list[RunningStudy]:
        """Returns the parts whose names begin with `prefix` and that have a folder, in the order of their names."""
        start = f"{self.study_id}.{prefix}"
        names = sorted(name for name in open_folder(self.storage).entries() if name.startswith(start))
        return [self.part(name.removeprefix(f"{self.study_id}.")) for name in names]

    def result(
        self,
        rows: list[TrialRow],
        sampled: optuna.Study | None = None,
        confirmed: Sequence[Confirmation] = (),
        shared: SharedResult | None = None,
    ) -> StudyResult:
        """Returns the study's result with these trials; its other arguments are as in `StudyResult`."""
        return StudyResult(
            rows=rows,
            run=self.delivery.study,
            folder=self.folder,
            location=self.place.location,
            seconds=time.perf_counter() - self._began,
            sampled=sampled,
            confirmed=confirmed,
            shared=shared,
        )

    def publish(self) -> None:
        """Copies the folder's files to the study's own folder if that is not on this machine."""
        if not isinstance(self.place, LocalFolder):
            for file in filter(Path.is_file, self.folder.iterdir()):
                self.place.put(file, file.name)


@contextlib.contextmanager
def running_study(
    study: Study,
    base: Config,
    plan: Mapping[str, Any],
    *,
    script: str,
    tags: Mapping[str, str],
    study_id: str | None = None,
) -> Iterator[RunningStudy]:
    """Starts a study, or resumes the newest of its name, for the duration of a `with` block.

    When the block ends, even by an error, the connection to Ray is closed, undelivered messages are sent to MLflow, the
    study's run is ended, and the lease is released, in this order.

    Args:
        study: how trials are run.
        base: the run that trials vary.
        plan: what else defines this study, by names, in values that JSON supports.
        script: name of the script that started the study, for MLflow.
        tags: tags of the study's run in MLflow.
        study_id: id of the study to resume; None: the newest of its name.

    Raises:
        ValueError: there is nothing to resume, the study to resume has another plan, runs are at a URL and there is no
            MLflow server, or a split has no labels (DataError).
        ConnectionError: MLflow cannot be reached.
        StudyRunningError: another process runs the study to resume.
    """
    runs = study.runs
    root = open_folder(runs)
    if isinstance(root, LocalFolder):
        check_kept(root.path.resolve())
        runs = str(root.path.resolve())
    storage = inside(runs, "ray")
    if study_id is None:
        study_id = newest_id(storage, study.name) if study.resume else new_id(study.name)
    info = read_info(base.data.path)
    require_labeled(base.data, info)
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
        try:
            yield running
            running.publish()
        except BaseException as error:
            if running.has_trials:
                error.add_note(f"the results of study {study_id} are kept: --resume continues it")
            elif study.resume:  # it may be refused for a reason that stays
                error.add_note(f"the results of study {study_id} are kept")
            if lease.lost:  # another process now continues the study and its run
                delivery.close(patience_s=0)
            else:
                delivery.study.end("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        delivery.study.end("FINISHED")
