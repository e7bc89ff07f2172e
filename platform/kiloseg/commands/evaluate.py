"""Evaluates a trained model on the validation images of a data set.

    kiloseg evaluate runs/train --data data/emoji --out runs/evaluation
    kiloseg evaluate runs/train --data data/emoji --out runs/evaluation --scales 0.75 1 1.25 --flip --workers 2

It writes metrics.json, classes.csv and classes.parquet with a row per class, the same of groups if the classes have any, figures,
and report.html with all of it. The metrics include mean IoU, which training also reports, top-5 accuracy, boundary IoU,
calibration, mean IoU of frequent and rare classes, and the pairs of classes that are confused most often.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

if TYPE_CHECKING:
    from kiloseg.inference.evaluation_files import Evaluation


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Evaluate a model."""

    source: tyro.conf.Positional[str]
    """A checkpoint, a folder of them, runs:/ID, or the name of a study."""
    data: str
    """Folder or URL of a data set with the model's classes. After classes were changed, they are matched by name."""
    out: Path
    """Folder for the files."""
    samples: int | None = None
    """Evaluate only the first N validation samples, 1 or more. None: all."""
    tile: int | None = None
    """Side in pixels of a sliding window, a multiple of 32, so that memory does not grow with the image. None: whole images."""
    overlap: int = 0
    """Pixels by which windows overlap, a multiple of 32 less than the tile."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the image's sides whose outputs are averaged, such as 0.75 1 1.25."""
    flip: bool = False
    """Also average the outputs of the mirror image."""
    workers: int = 1
    """Number of processes; the counts do not depend on it."""
    by_name: bool = False
    """Match classes by name, and let the data set and the model have classes that the other lacks."""
    overwrite: bool = False
    """Replace an existing evaluation."""
    device: str | None = None
    """Where the network runs: cpu, cuda, cuda:1, ... None: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network. auto: bf16 on a GPU that supports it, else fp32."""
    log: bool = True
    """If the model belongs to a run in MLflow, also log the files and numbers there, as evaluation/..."""
    runs: Path = Path("runs")
    """Folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server."""

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"--samples {self.samples}: expected at least 1")


def main(arguments: Arguments) -> None:
    """Writes the files and prints the metrics."""
    from kiloseg.inference.counting import Views
    from kiloseg.inference.evaluation import evaluate
    from kiloseg.inference.evaluation_files import check_free
    from kiloseg.inference.loading import load

    check_free(arguments.out, arguments.overwrite)
    views = Views(tile=arguments.tile, overlap=arguments.overlap, scales=arguments.scales, flip=arguments.flip)
    model = load(arguments.source, device=arguments.device, precision=arguments.precision, runs=arguments.runs)
    evaluation = evaluate(
        model,
        arguments.data,
        samples=arguments.samples,
        views=views,
        workers=arguments.workers,
        by_name=arguments.by_name,
    )
    files = evaluation.save(arguments.out, overwrite=arguments.overwrite)
    run = _logged(arguments, evaluation, files) if arguments.log else None
    for name, value in evaluation.metrics.items():
        if isinstance(value, float):
            print(f"{name:<28}{value:.4f}")
    for level, value in enumerate(evaluation.metrics["group_miou"] or [], start=1):
        print(f"{f'group_miou, level {level}':<28}{value:.4f}")
    for pair in evaluation.metrics["confused"][:5]:
        print(f"{pair['label']} taken for {pair['predicted']}: {pair['pixels']:,} pixels")
    print(f"{arguments.out}: {', '.join(path.name for path in files)}")
    if run is not None:
        print(f"logged to run {run} in MLflow, artifacts/evaluation")


def _logged(arguments: Arguments, evaluation: Evaluation, files: list[Path]) -> str | None:
    """Logs the evaluation to the model's run in MLflow and returns the run's id; None if the model belongs to no run."""
    from kiloseg.tracking.checkpoints import run_of_source

    run = run_of_source(arguments.source, arguments.runs)
    if run is None:
        return None
    for file in files:
        inner = file.relative_to(arguments.out).parent
        run.log_file(file, (Path("evaluation") / inner).as_posix())
    numbers = {name: value for name, value in evaluation.metrics.items() if isinstance(value, float)}
    numbers |= {
        f"group_miou_level_{level}": value
        for level, value in enumerate(evaluation.metrics["group_miou"] or [], start=1)
    }
    run.log_points([(f"evaluation/{name}", value, 0) for name, value in numbers.items()], time.time_ns() // 10**6)
    return run.run_id
