"""Evaluates a trained model on the validation images of a data set; writes metrics.json, and classes.csv with a row per class.

    kiloseg evaluate runs/train --data data/emoji --out runs/evaluation

The metrics include mean IoU, which training also reports, boundary IoU, calibration, mean IoU of frequent and rare classes, and the
pairs of classes that are confused most often.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Evaluate a model."""

    source: tyro.conf.Positional[str]
    """A checkpoint, a folder of them, runs:/ID, or the name of a study."""
    data: str
    """Folder or URL of a data set with the model's classes."""
    out: Path
    """Folder to write metrics.json and classes.csv to."""
    samples: int | None = None
    """Evaluate only the first N validation samples, 1 or more. None: all."""
    overwrite: bool = False
    """Replace an existing evaluation."""
    device: str | None = None
    """Where the network runs: cpu, cuda, cuda:1, ... None: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network. auto: bf16 on a GPU that supports it, else fp32."""
    runs: Path = Path("runs")
    """Folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"--samples {self.samples}: expected at least 1")


def main(arguments: Arguments) -> None:
    """Writes the files and prints the metrics."""
    from kiloseg.inference.evaluation import check_free, evaluate
    from kiloseg.inference.loading import load

    check_free(arguments.out, arguments.overwrite)
    model = load(arguments.source, device=arguments.device, precision=arguments.precision, runs=arguments.runs)
    evaluation = evaluate(model, arguments.data, samples=arguments.samples)
    evaluation.save(arguments.out, overwrite=arguments.overwrite)
    for name, value in evaluation.metrics.items():
        if isinstance(value, float):
            print(f"{name:<28}{value:.4f}")
    for pair in evaluation.metrics["confused"][:5]:
        print(f"{pair['label']} taken for {pair['predicted']}: {pair['pixels']:,} pixels")
    print(f"{arguments.out}/metrics.json, classes.csv")
