"""Says what helps where MLflow refuses: commands to paste into a shell, for databases, runs and experiments."""

from __future__ import annotations

import os

import mlflow.exceptions

from kiloseg.storage.commands import shell
from kiloseg.storage.credentials import shown

SQLITE = "sqlite:///"


class DeletedError(ValueError):
    """Raised if a run or an experiment was deleted in MLflow, where it can be restored."""


def is_deleted(error: Exception) -> bool:
    """Returns whether MLflow refused a request because the run was deleted; it will accept it once the run is restored."""
    return isinstance(error, mlflow.exceptions.MlflowException) and "must be in the 'active' state" in str(error)


def restore_run(uri: str, run_id: str) -> str:
    """Returns the command that restores a deleted run."""
    return shell("mlflow", "runs", "restore", "--run-id", run_id, env={"MLFLOW_TRACKING_URI": shown(uri)})


def restore_experiment(uri: str, experiment_id: str) -> str:
    """Returns the command that restores a deleted experiment and its runs."""
    words = ("mlflow", "experiments", "restore", "--experiment-id", experiment_id)
    return shell(*words, env={"MLFLOW_TRACKING_URI": shown(uri)})


def not_opened(uri: str, error: Exception) -> str:
    """Says why a tracking server or database cannot be used, and what helps."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].replace(uri, shown(uri))[:200]
    if not uri.startswith(SQLITE):
        return (
            f"MLflow at {shown(uri)} does not answer ({reason}); start it, correct MLFLOW_TRACKING_URI, or unset it to use SQLite "
            "under runs/"
        )
    path = uri.removeprefix(SQLITE)
    if "out-of-date database schema" in str(error):
        return (
            f"MLflow's database {path} is of an older version of MLflow; make a copy of it, then bring it up to date with\n    "
            f"{shell('mlflow', 'db', 'upgrade', uri)}"
        )
    own = "MLFLOW_TRACKING_URI" in os.environ
    other = "set MLFLOW_TRACKING_URI to another database or unset it" if own else "give another folder (--runs)"
    return (
        f"MLflow's database {path} cannot be opened ({reason}): expected a SQLite database of this version of MLflow in a folder "
        f"that can be written to; restore it, or {other}"
    )
