"""Registers the model of a run or study in MLflow when it ends."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from kiloseg.storage.commands import shell

if TYPE_CHECKING:
    from kiloseg.tracking.runs import TrackedRun

logger = logging.getLogger(__name__)


def register_checkpoint(checkpoint: Path | str, run: TrackedRun, name: str) -> str:
    """Registers the model of a checkpoint, and returns a line that says so; if that fails, a warning says what to do.

    An unreachable registry must not end a study whose result is already stored.

    Args:
        checkpoint: path or URL of the checkpoint.
        run: the run or study that it belongs to.
        name: NAME or NAME@ALIAS.
    """
    from kiloseg.inference.loading import content_of  # these take seconds to import, and most studies do not register
    from kiloseg.inference.registration import register

    try:
        source, version = register(content_of(checkpoint), run, name)
    except ConnectionError as error:
        again = shell(
            *("kiloseg", "export", checkpoint, "--format", "mlflow", "--register", name),
            env={"MLFLOW_TRACKING_URI": run.tracker.shown},
        )
        logger.warning("%s, then register it with\n    %s", error, again)
        return ""
    return f"registered: {source}, version {version}\n"


def register_output(output: Path | str, name: str, runs: Path) -> str:
    """Does the same as `register_checkpoint` for the newest checkpoint of a single run, whose id in MLflow is noted beside it.

    Args:
        output: `trainer.output` of the run.
        name: NAME or NAME@ALIAS.
        runs: folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server.
    """
    from kiloseg.tracking.checkpoints import run_of_source

    run = run_of_source(str(Path(output).resolve()), runs.resolve())
    if run is None:
        logger.warning(
            "%s is not registered as %s: MLflow does not answer or does not know its run; register it with\n    %s",
            output, name, shell("kiloseg", "export", output, "--format", "mlflow", "--register", name, "--runs", runs),
        )  # fmt: skip
        return ""
    return register_checkpoint(output, run, name)
