"""A sheet of predictions of a trained model with the names of classes, such as docs/pictures/predictions_1024.png.

    python docs/draw_predictions.py --checkpoint runs/.../step-00001234.pt --out docs/pictures/predictions_1024.png

Which samples are shown is not chosen: they are spread evenly over the split.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import kiloseg
from kiloseg.data.classes import select_classes
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import validation_batches
from kiloseg.plotting import prediction_sheet


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Draw a sheet of predictions."""

    checkpoint: Path
    """Of the model; its run names the data set."""
    out: Path
    """The picture."""
    split: str = "val"
    """Whose samples are shown."""
    samples: int = 4
    """How many."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the image's sides whose outputs are averaged."""
    title: str = ""
    """Above the sheet."""


def main(arguments: Arguments) -> None:
    """Draws it."""
    model = kiloseg.load(arguments.checkpoint, scales=arguments.scales)
    info = read_info(model.config.data.path)
    data = dataclasses.replace(model.config.data, val_batch_size=1, val_samples=None)
    classes = select_classes(data, info)
    wanted = set(np.linspace(0, info.num_samples(arguments.split) - 1, arguments.samples).round().astype(int).tolist())
    batches = (
        batch for number, batch in enumerate(validation_batches(data, info, split=arguments.split)) if number in wanted
    )
    figure = prediction_sheet(
        [
            (images[0].permute(1, 2, 0).numpy(), labels[0].numpy(), model(images[0].permute(1, 2, 0).numpy()).labels)
            for images, labels in batches
        ],
        num_classes=model.segmenter.num_classes,
        background=classes.background,
        title=arguments.title or f"{info.name}, split {arguments.split}, {model.segmenter.num_classes:,} classes",
        names=classes.names,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=80)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
