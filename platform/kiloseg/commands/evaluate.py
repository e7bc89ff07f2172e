"""Evaluates a trained model on the validation images of a data set: metrics.json, and classes.csv with a row per class.

    kiloseg evaluate runs/train --data data/emoji --out runs/evaluation

Mean IoU is what training reports; beside it are boundary IoU, calibration, classes by how often they were trained, and the most
confused pairs.
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
    """Folder for metrics.json and classes.csv."""
    samples: int | None = None
    """Only the first N validation samples. None: all."""
    overwrite: bool = False
    """Take the place of an evaluation that is there."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; a GPU is taken if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""
    runs: Path = Path("runs")
    """Folder of MLflow's database where no server is named."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"--samples {self.samples}: expected at least 1")


def main(arguments: Arguments) -> None:
    """Writes the files and prints the figures."""
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
