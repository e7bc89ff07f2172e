"""Creates runs in MLflow and writes their numbers. This is the only module of the package that writes to MLflow.

An experiment is named after the study; a parent run stands for the study and a child run for each trial. Everything is
written through `MlflowClient`, which holds no global state, so that trials in one process cannot mix their runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.exceptions
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, LifecycleStage, Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_RUN_NAME,
    MLFLOW_SOURCE_NAME,
)

from kiloseg.storage.commands import shell
from kiloseg.storage.credentials import shown
from kiloseg.tracking.advice import SQLITE, DeletedError, not_opened, restore_experiment, restore_run
from kiloseg.tracking.rehoming import ARTIFACTS, rehome

TRIAL_TAG = "kiloseg.trial"
STUDY_TAG = "kiloseg.study"
CURVE_TAG = "kiloseg.curve"
"""Tag with the name of the curve, on a run that holds a curve over a study's trials."""

KIND_TAG = "mlflow.experimentKind"
KIND = "custom_model_development"
"""Kind of our experiments. MLflow 3 treats an experiment without a kind as one of language models: it shows traces, not runs."""

LOCAL_SERVER = "http://127.0.0.1:5000"
"""Default address of `mlflow ui`."""

PARAM_LENGTH = 6000
"""Longest parameter that MLflow accepts, in characters."""
BATCH = 1000
"""Most metrics that MLflow accepts in one request."""
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
"""Error codes of requests that MLflow will never accept, however often they are sent."""
PERHAPS_REFUSALS = ("BAD_REQUEST",)
"""Error codes that MLflow also uses for temporary problems, such as a database whose connections are all in use."""


@dataclass(frozen=True, kw_only=True)
class Tracker:
    """The experiment and server in which runs are kept; small and picklable, so that it can be sent to workers."""

    uri: str
    """Address of the tracking server or database; may hold a password."""
    experiment_id: str

    @staticmethod
    def open(experiment: str, runs: Path | None) -> Tracker:
        """Opens the tracker at MLFLOW_TRACKING_URI, else on SQLite in the folder `runs`; creates a missing experiment.

        Raises:
            ConnectionError: the server cannot be reached, or the database cannot be opened.
            DeletedError: the experiment was deleted in MLflow.
            ValueError: neither MLFLOW_TRACKING_URI nor `runs` is given.
        """
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            if runs is None:
                raise ValueError(
                    "MLflow's own database is a file and needs a folder on this machine: if runs are elsewhere, set "
                    "MLFLOW_TRACKING_URI to a tracking server (make services starts one), or to sqlite:////FOLDER/mlflow.db"
                )
            uri = f"sqlite:///{runs.resolve() / 'mlflow.db'}"
        # That it makes the tables of a new database reads like a warning.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        artifacts = None
        try:
            if uri.startswith(SQLITE):
                database = Path(uri.removeprefix(SQLITE)).resolve()
                database.parent.mkdir(parents=True, exist_ok=True)
                artifacts = (database.parent / ARTIFACTS / experiment).as_uri()
            with _alone(uri):
                if artifacts is not None:
                    rehome(database)
                experiment_id = _experiment_id(MlflowClient(uri), experiment, artifacts)
        except DeletedError:
            raise
        except Exception as error:  # of MLflow, or of a database beneath it
            raise ConnectionError(not_opened(uri, error)) from error
        return Tracker(uri=uri, experiment_id=experiment_id)

    @property
    def client(self) -> MlflowClient:
        """A new MLflow client for this process."""
        return MlflowClient(self.uri)

    @property
    def shown(self) -> str:
        """The address without a password, for messages."""
        return shown(self.uri)

    def ui_command(self) -> str:
        """Returns instructions that open the MLflow UI on this experiment's runs: a command, or an address."""
        if self.uri.startswith("http"):
            return f"open {self.runs_url(self.shown)}"
        command = shell("mlflow", "ui", "--backend-store-uri", self.shown, "--workers", "1")
        return f"{command}\n    and open {self.runs_url(LOCAL_SERVER)}"

    def runs_url(self, server: str) -> str:
        """Returns the URL of the page on a tracking server that lists this experiment's runs."""
        return f"{server.rstrip('/')}/#/experiments/{self.experiment_id}/runs"

    def study_run(self, study: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> TrackedRun:
        """Finds the parent run of a study by the study's name, or creates it."""
        return self._find_or_create({STUDY_TAG: study}, study, params, tags)

    def trial_run(
        self, study: TrackedRun, trial: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> TrackedRun:
        """Finds the child run of a trial by the trial's name, or creates it."""
        own = {TRIAL_TAG: trial, MLFLOW_PARENT_RUN_ID: study.run_id}
        return self._find_or_create(own, trial, params, tags)

    def _find(self, tags: Mapping[str, str]) -> Run | None:
        condition = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        runs = self.client.search_runs([self.experiment_id], condition, max_results=1)
        return runs[0] if runs else None

    def _find_or_create(
        self, own: Mapping[str, str], name: str, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> TrackedRun:
        run = self._find(own)
        if run:
            self.client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self.client.create_run(self.experiment_id, run_name=name, tags={MLFLOW_RUN_NAME: name, **own, **tags})
        tracked = TrackedRun(tracker=self, run_id=run.info.run_id)
        # The first value of a parameter stays: a resumed study may have changed some that do not affect the result.
        tracked.log_params({key: value for key, value in params.items() if key not in run.data.params})
        return tracked


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run in MLflow; small and picklable."""

    tracker: Tracker
    run_id: str

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs the settings of the run, by dotted name."""
        entries = [Param(name, str(value)[:PARAM_LENGTH]) for name, value in params.items()]
        self.tracker.client.log_batch(self.run_id, params=entries)

    def log_points(self, points: Sequence[tuple[str, float, int]], time_ms: int) -> None:
        """Logs names, values and steps of metrics that were measured at `time_ms`, in milliseconds since 1970."""
        entries = [Metric(name, value, time_ms, step) for name, value, step in points]
        for start in range(0, len(entries), BATCH):
            self.tracker.client.log_batch(self.run_id, metrics=entries[start : start + BATCH])

    def logged(self) -> set[tuple[str, int]]:
        """Returns the name and step of every metric value that the run has."""
        client = self.tracker.client
        names = client.get_run(self.run_id).data.metrics
        return {(name, point.step) for name in names for point in client.get_metric_history(self.run_id, name)}

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags, which the UI can filter by."""
        self.tracker.client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def log_table(self, columns: Mapping[str, list[Any]], file: str) -> None:
        """Logs a table artifact (JSON), which the UI shows and compares; replaces one with the same name.

        MLflow's own log_table appends to an existing table, so that a second delivery would double its rows.
        """
        client = self.tracker.client
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        client.log_text(self.run_id, json.dumps({"columns": list(columns), "data": rows}), file)
        shown = json.loads(client.get_run(self.run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        entry = {"path": file, "type": "table"}
        if entry not in shown:
            client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*shown, entry]))

    def log_dataset(self, name: str, digest: str, path: str) -> None:
        """Logs the data set that the run used: its name, digest (hexadecimal) and folder."""
        dataset = Dataset(name, digest[:32], "local", json.dumps({"path": path}))
        self.tracker.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset)])

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Logs a file as an artifact."""
        self.tracker.client.log_artifact(self.run_id, str(path), folder)

    def answers(self) -> bool:
        """Returns whether the server answers and knows this run."""
        try:
            self.tracker.client.get_run(self.run_id)
        except Exception:
            return False
        return True

    def require_active(self) -> bool:
        """Returns whether the server knows the run; True also if it does not answer now.

        Raises:
            DeletedError: the run was deleted; the message has the command that restores it.
        """
        try:
            info = self.tracker.client.get_run(self.run_id).info
        except mlflow.exceptions.MlflowException as error:
            return error.error_code != "RESOURCE_DOES_NOT_EXIST"
        if info.lifecycle_stage != LifecycleStage.ACTIVE:
            raise DeletedError(
                f"run {info.run_name} ({self.run_id}) was deleted in MLflow; restore it with\n    {self.restore_command()}\n"
                "or start a new run with another trainer.output"
            )
        return True

    def restore_command(self) -> str:
        """Returns the command that restores the run after it was deleted."""
        return restore_run(self.tracker.uri, self.run_id)

    def end(self, status: str) -> None:
        """Ends the run as "FINISHED", "FAILED" or "KILLED"."""
        self.tracker.client.set_terminated(self.run_id, status)


def is_refusal(error: Exception, *, perhaps: bool = False) -> bool:
    """Returns whether MLflow answered and will never accept a request; with `perhaps`, whether its error may mean that."""
    if isinstance(error, FileNotFoundError):  # the file to log as an artifact is gone
        return True
    codes = PERHAPS_REFUSALS if perhaps else REFUSALS
    return isinstance(error, mlflow.exceptions.MlflowException) and error.error_code in codes


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Locks a SQLite database: processes of this machine that open a new one at the same time crash in its migrations."""
    if not uri.startswith(SQLITE):
        yield
        return
    with FileLock(uri.removeprefix(SQLITE) + ".lock"):
        yield


def _experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage != LifecycleStage.ACTIVE:
        command = restore_experiment(client.tracking_uri, found.experiment_id)
        raise DeletedError(
            f"experiment {name!r} was deleted in MLflow; restore it and its runs with\n    {command}\nor give another name "
            "(--experiment for a single run, --name for a study)"
        )
    if found is None:
        try:
            return client.create_experiment(name, artifacts, {KIND_TAG: KIND})
        except mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another study created it in the meantime
    if KIND_TAG not in found.tags:  # created by an earlier version
        client.set_experiment_tag(found.experiment_id, KIND_TAG, KIND)
    return found.experiment_id


def source_tags(root: Path, script: str) -> dict[str, str]:
    """Returns tags that say which code ran: the script's name and the git commit, with "+changes" if the tree differs."""
    tags = {MLFLOW_SOURCE_NAME: script}
    commit = git_commit(root)
    if commit:
        tags[MLFLOW_GIT_COMMIT] = commit
    return tags


def git_commit(root: Path) -> str | None:
    """Returns the commit of a checkout, with "+changes" if it has any; None outside of one (a submitted job, a package)."""
    try:
        from git import InvalidGitRepositoryError, NoSuchPathError, Repo
    except ImportError:  # GitPython also raises it if there is no git program
        return None
    try:
        repository = Repo(root)
        return repository.head.commit.hexsha + ("+changes" if repository.is_dirty() else "")
    except (InvalidGitRepositoryError, NoSuchPathError, ValueError):
        return None
