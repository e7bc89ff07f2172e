"""Makes the paths in a run's settings absolute, since workers have other working directories than the command."""

from __future__ import annotations

from pathlib import Path

from kiloseg.config import Config
from kiloseg.data.class_weights import POWERS
from kiloseg.overrides import override
from kiloseg.storage.filesystems import open_folder
from kiloseg.tracking.sources import place_of
from kiloseg.training.initial import WORDS


def absolute(config: Config, runs: Path | str) -> Config:
    """Returns the run with absolute paths, also of what `model.weights` names by a run, a registered model or a study.

    Args:
        config: the run, with a `data.path`.
        runs: folder of results, which holds MLflow's database; used only if MLFLOW_TRACKING_URI names no server.

    Raises:
        ValueError: there is no such run, model or study, or it has no checkpoint.
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
    place = place_of(weights, runs)
    return place if "://" in place else _path(place)


def _path(text: str) -> str:
    return str(Path(text).expanduser().resolve())
