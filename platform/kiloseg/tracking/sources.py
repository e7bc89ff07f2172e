"""Finds the place of a trained model that is named by a run, a registered model or a study."""

from __future__ import annotations

from pathlib import Path

from kiloseg.tracking.model_names import SOURCE as REGISTERED

RUN = "runs:/"


def place_of(source: str, runs: Path) -> str:
    """Returns the path or URL of the checkpoint, folder of checkpoints or exported folder that a source names.

    Args:
        source: a path or URL, which is returned as it is; or `runs:/ID`; or `models:/NAME@ALIAS` or `models:/NAME/VERSION`; or
            anything else that is no file here, as the name of a study.
        runs: folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server.

    Raises:
        ValueError: there is no such run, model or study, or it has no checkpoint.
        ConnectionError: a tracking server does not answer.
    """
    # MLflow takes seconds to import, and a machine that only predicts does not need to have it.
    if source.startswith(RUN):
        from kiloseg.tracking.checkpoints import checkpoint_of_run

        return checkpoint_of_run(source.removeprefix(RUN), runs)
    if source.startswith(REGISTERED):
        from kiloseg.tracking.models import registered_model

        return registered_model(source, runs)
    if "://" in source:
        return source
    path = Path(source).expanduser()
    if path.exists() or path.suffix == ".pt":
        return str(path)
    from kiloseg.tracking.checkpoints import checkpoint_of_study

    return checkpoint_of_study(source, runs)
