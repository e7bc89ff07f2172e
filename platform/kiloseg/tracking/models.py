"""Writes models as MLflow understands them, and registers them under a name and an alias.

A model that MLflow serves consists of data, the code of the package, and the name of the module that loads the data; nothing in it
is pickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kiloseg.tracking.checkpoints import tracking_client
from kiloseg.tracking.downloads import downloaded
from kiloseg.tracking.model_names import DATA, SOURCE, split_name
from kiloseg.tracking.runs import TrackedRun

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow 3.17 about its own types, when it is imported
    import mlflow.artifacts
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

MODEL = "model"
"""Artifact folder of a run that holds its MLflow model."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a model's input or output: names, in order, with the name of MLflow's type for each."""

    types: Mapping[str, str]

    def schema(self) -> Schema:
        """Returns the columns as MLflow describes them."""
        return Schema([ColSpec(DataType[kind], name) for name, kind in self.types.items()])


def save_model(
    out: Path,
    data: Path,
    *,
    loader_module: str,
    code: Path,
    requirements: Sequence[str],
    inputs: Columns,
    outputs: Columns,
    example: Mapping[str, list[Any]],
    metadata: Mapping[str, Any],
) -> None:
    """Writes an MLflow model, which `mlflow.pyfunc.load_model` and `mlflow models serve` accept.

    Args:
        out: folder for the model; must not exist.
        data: folder that the loader module loads; its name is kept.
        loader_module: name of a module with a function `_load_pyfunc(path)`.
        code: folder of the package that holds the module, which is copied.
        requirements: requirements as pip takes them.
        inputs: the columns of the input.
        outputs: the columns of the output.
        example: an input, as columns.
        metadata: numbers and words that the model's page shows.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas 3 about MLflow 3.17, when the example is stored
        mlflow.pyfunc.save_model(
            path=str(out),
            loader_module=loader_module,
            data_path=str(data),
            code_paths=[str(code)],
            pip_requirements=list(requirements),
            signature=ModelSignature(inputs=inputs.schema(), outputs=outputs.schema()),
            input_example=pandas.DataFrame(example),
            metadata=dict(metadata),
        )


def register_model(
    run: TrackedRun, model: Path, register: str, *, description: str, tags: Mapping[str, str]
) -> tuple[str, str]:
    """Logs an MLflow model to a run and registers it as a new version, to which the alias then points.

    Args:
        run: the run that trained the model.
        model: folder of an MLflow model.
        register: NAME or NAME@ALIAS.
        description: Markdown text for the page of the version.
        tags: tags of the version.

    Returns:
        The source by which every command accepts the model, models:/NAME@ALIAS, and the number of the version.

    Raises:
        ValueError: as `split_name`.
        ConnectionError: the server does not accept it; the message says why.
    """
    name, alias = split_name(register)
    client = run.tracker.client
    try:
        client.log_artifacts(run.run_id, str(model), MODEL)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            name, f"runs:/{run.run_id}/{MODEL}", run.run_id, tags=dict(tags), description=description
        )
        client.set_registered_model_alias(name, alias, version.version)
    except (MlflowException, OSError) as error:
        raise ConnectionError(
            f"the model could not be registered as {name} in MLflow at {run.tracker.shown} ({_first_line(error)}); check the "
            "server and the name"
        ) from error
    return f"{SOURCE}{name}@{alias}", str(version.version)


def registered_model(source: str, runs: Path) -> str:
    """Fetches a registered model to this machine and returns the folder that `kiloseg export --format folder` wrote.

    Args:
        source: models:/NAME@ALIAS or models:/NAME/VERSION.
        runs: folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server.

    Raises:
        ValueError: there is no such model, or kiloseg did not write it.
        ConnectionError: the registry does not answer.
    """
    client = tracking_client(runs, source)
    place = _download(client, source)
    data = place / "data" / DATA
    if not data.is_dir():
        raise ValueError(
            f"{source} is no model of kiloseg (it has no data/{DATA}): expected one that a study registered with --register"
        )
    return str(data)


def _download(client: MlflowClient, source: str) -> Path:
    name, at, alias = source.removeprefix(SOURCE).partition("@")
    version = alias
    if not at:
        name, _, version = name.partition("/")
    if not name or not version:
        raise ValueError(f"{source}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    try:
        found = client.get_model_version_by_alias(name, alias) if at else client.get_model_version(name, version)
        uri = client.get_model_version_download_uri(name, found.version)
        key = f"{client.tracking_uri} {name} {found.version} {found.creation_timestamp}"
        tracking = client.tracking_uri
        return downloaded(
            key, lambda folder: mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=tracking)
        )
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise ValueError(
                f"{source} is not registered ({_first_line(error)}); check the name, the alias, MLFLOW_TRACKING_URI or --runs"
            ) from error
        raise ConnectionError(f"MLflow's registry could not be asked for {source} ({_first_line(error)})") from error
    except OSError as error:
        raise ConnectionError(f"the files of {source} cannot be fetched ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
