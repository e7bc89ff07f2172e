"""Makes the paths in a run's settings absolute, since workers have other working directories than the command."""

from __future__ import annotations

from pathlib import Path

from kiloseg.config import Config
from kiloseg.data.class_weights import POWERS
from kiloseg.overrides import override
from kiloseg.storage.filesystems import open_folder
from kiloseg.training.initial import WORDS

RUN = "runs:/"


def absolute(config: Config, runs: Path | str) -> Config:
    """Returns the run with absolute paths, and with the checkpoint that `model.weights` names by a run or a study.

    Args:
        config: the run, with a `data.path`.
        runs: folder of results, which holds MLflow's database; used only if MLFLOW_TRACKING_URI names no server.

    Raises:
        ValueError: there is no such run or study, or it has no checkpoint.
        ConnectionError: the tracking server does not answer.
    """
    weights = config.loss.class_weights
    return override(
        config,
        {
            "data.path": open_folder(config.data.path).location,
            "model.weights": _weights(config.model.weights, Path("runs" if "://" in str(runs) else runs)),
            "loss.class_weights": weights if weights in ("none", *POWERS) else _path(weights),
        },
    )


def _weights(weights: str, runs: Path) -> str:
    if weights in WORDS:
        return weights
    if weights.startswith(RUN):
        from kiloseg.tracking.checkpoints import checkpoint_of_run

        return checkpoint_of_run(weights.removeprefix(RUN), runs)
    if "://" in weights:
        return weights
    # A single word that is no file may be the name of a study.
    if not Path(weights).expanduser().exists() and Path(weights).name == weights and not Path(weights).suffix:
        from kiloseg.tracking.checkpoints import checkpoint_of_study

        return checkpoint_of_study(weights, runs)
    return _path(weights)


def _path(text: str) -> str:
    return str(Path(text).expanduser().resolve())
