"""Finds the checkpoints that belong to runs in MLflow."""

from __future__ import annotations

import os
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from kiloseg.tracking.downloads import downloaded
from kiloseg.tracking.rehoming import folder_of, rehome
from kiloseg.tracking.runs import TrackedRun, Tracker
from kiloseg.training.checkpoint_names import PATTERN

BEST = "best"
"""Artifact folder of a study's run that holds the checkpoint of its best trial."""
RUN_NOTE = "mlflow_run_id"
"""File beside the checkpoints of a run that holds the run's id in MLflow."""


def checkpoint_of_study(name: str, runs: Path) -> str:
    """Returns the best trial's checkpoint, or folder of checkpoints, from the newest run of a study that has one.

    Args:
        name: name of the study, which is also the name of its experiment.
        runs: folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server.

    Raises:
        ValueError: there is no such study, or it has no checkpoint.
        ConnectionError: the tracking server does not answer.
    """
    return _newest_of_study(name, runs)[1]


def run_of_source(source: str, runs: Path) -> TrackedRun | None:
    """Returns the run in MLflow that a model's source belongs to: `runs:/ID`, a study, or a folder of a run's checkpoints.

    Args:
        source: as `kiloseg.load` accepts it.
        runs: as for `checkpoint_of_study`.

    Returns:
        The run; None for a source that was not recorded, or not in this MLflow.

    Raises:
        ConnectionError: the tracking server does not answer.
    """
    path = Path(source.removeprefix("file://"))
    if source.startswith("runs:/"):
        run_id = source.removeprefix("runs:/")
    elif path.exists():
        note = (path if path.is_dir() else path.parent) / RUN_NOTE
        if not note.is_file():
            return None
        run_id = note.read_text().strip()
    elif "://" in source or ":/" in source:
        return None
    else:
        run_id = _newest_of_study(source, runs)[0].info.run_id
    try:
        client = tracking_client(runs, source)
        experiment = client.get_run(run_id).info.experiment_id
    except (ValueError, MlflowException):
        return None
    return TrackedRun(tracker=Tracker(uri=client.tracking_uri, experiment_id=experiment), run_id=run_id)


def _newest_of_study(name: str, runs: Path) -> tuple[Run, str]:
    """Returns the newest run of a study that has a checkpoint, and the place of that."""
    client = tracking_client(runs, name)
    try:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise ValueError(
                f"{name} is not a file, a folder or a study in MLflow; give a checkpoint, a folder of them, runs:/ID, or the "
                "name of a study (and the folder it was recorded in, --runs, if that is another)"
            )
        found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
        for run in found:
            if MLFLOW_PARENT_RUN_ID not in run.data.tags and (place := _place(client, run)):
                return run, place
    except MlflowException as error:
        raise ConnectionError(f"MLflow could not be queried for study {name} ({_first_line(error)})") from error
    raise ValueError(f"no run of study {name} has a checkpoint; give runs:/ID of a trial, or a checkpoint file")


def checkpoint_of_run(run_id: str, runs: Path) -> str:
    """Returns the checkpoint that was logged to a run, or the folder of its checkpoints if that still exists.

    Args:
        run_id: id of the run in MLflow.
        runs: as for `checkpoint_of_study`.

    Raises:
        ValueError: there is no such run, or it has no checkpoint.
    """
    client = tracking_client(runs, f"runs:/{run_id}")
    try:
        run = client.get_run(run_id)
        place = _place(client, run)
    except MlflowException as error:
        raise ValueError(
            f"runs:/{run_id} cannot be read ({_first_line(error)}); check the id, MLFLOW_TRACKING_URI or --runs"
        ) from error
    if place is None:
        raise ValueError(
            f"runs:/{run_id} has no checkpoint: none was logged to it, and its trainer.output = "
            f"{run.data.params.get('trainer.output')!r} is not a folder on this machine"
        )
    return place


def tracking_client(runs: Path, wanted: str) -> MlflowClient:
    """Returns a client of the server at MLFLOW_TRACKING_URI, else of the database in the folder `runs`.

    Raises:
        ValueError: there is no such database; the message names what was wanted of it.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        database = runs.resolve() / "mlflow.db"
        if not database.is_file():  # MLflow would create the missing database
            raise ValueError(
                f"{wanted}: no such file or folder, and no runs are recorded in {runs}; give a checkpoint, or the folder "
                "runs were recorded in (--runs), or set MLFLOW_TRACKING_URI"
            )
        uri = f"sqlite:///{database}"
        rehome(database)
    return MlflowClient(uri)


def _place(client: MlflowClient, run: Run) -> str | None:
    logged = [item.path for item in client.list_artifacts(run.info.run_id, BEST) if Path(item.path).match(PATTERN)]
    if logged:
        store = folder_of(run.info.artifact_uri)
        if store is not None:  # a place of its own, which a later resumption finds again
            return str(store / max(logged))
        key = f"{client.tracking_uri} {run.info.run_id} {max(logged)}"
        return str(downloaded(key, lambda folder: client.download_artifacts(run.info.run_id, max(logged), folder)))
    output = run.data.params.get("trainer.output")
    return output if output and any(Path(output).glob(PATTERN)) else None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
