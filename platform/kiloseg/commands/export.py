"""Writes a trained model in a form that other programs and machines can load.

    kiloseg export runs/train --format folder --out models/mine

folder: config.json, classes.json and model.safetensors, none of which can run code. `kiloseg.load` and every command accept the
folder by its path or by a URL such as s3://BUCKET/FOLDER.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Export a model."""

    source: tyro.conf.Positional[str]
    """A checkpoint, a folder of them, an exported folder, runs:/ID, or the name of a study."""
    format: Literal["folder"]
    """What to write, as described above."""
    out: str
    """Path or URL of the folder."""
    overwrite: bool = False
    """Replace what is already there."""
    runs: Path = Path("runs")
    """Folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server."""


def main(arguments: Arguments) -> None:
    """Writes the model and prints where it is."""
    from kiloseg.inference.folder import save_folder
    from kiloseg.inference.loading import classes_of, content_of

    content = content_of(arguments.source, arguments.runs)
    classes = classes_of(content)
    save_folder(content, classes.record(), arguments.out, overwrite=arguments.overwrite)
    print(f"{arguments.out.partition('?')[0]}: {len(classes):,} classes")
