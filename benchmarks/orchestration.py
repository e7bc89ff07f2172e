"""Measures what Ray and MLflow cost a trial beyond its training.

    python benchmarks/orchestration.py

Runs a study of trials that train for a few steps, as many at once as fit, and compares its wall time with the time spent
inside `kiloseg.training.loop.train`. The cost of a trial is (wall time - training time / trials at once) / trials: what each
trial adds to the length of a study. Starting Ray itself is given apart.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import ray
import tyro

from kiloseg.config import Config, Data, Model, Optimizer, Trainer
from kiloseg.tuning.cluster import concurrency, has_gpu, start_ray
from kiloseg.tuning.search import Search, search
from kiloseg.tuning.space import Space, log

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures the overhead of a trial."""

    num_trials: int = 8
    """The number of trials in the study."""
    reports: int = 3
    """The number of validations in a trial, each with a report and a checkpoint."""


def main(arguments: Arguments) -> None:
    """Runs the study and prints where its time went."""
    with tempfile.TemporaryDirectory(prefix="kiloseg-") as folder:
        data = Path(folder) / "glyphs"
        glyphs = [sys.executable, str(ROOT / "datasets" / "glyphs.py"), "--out", str(data), "--num-classes", "40"]
        subprocess.run([*glyphs, "--train-samples", "64", "--val-samples", "16"], check=True)
        base = Config(
            data=Data(path=str(data), crop=96, loader_workers=0, num_classes=40, val_samples=16),
            model=Model(arch="fpn", backbone="tf_efficientnet_lite0", weights="package"),
            optimizer=Optimizer(name="adamw", lr=1e-3),
            trainer=Trainer(steps=arguments.reports, batch_size=8, validate_every=1),
        )
        begin = time.perf_counter()
        start_ray()
        ray_seconds = time.perf_counter() - begin
        study = Search(name="orchestration", num_trials=arguments.num_trials, early_stopping=False, runs=folder)
        at_once = min(concurrency(study.resources(has_gpu=has_gpu())), arguments.num_trials)
        space = Space(base, (log("optimizer.lr", 1e-4, 1e-3),))
        with search(study, space, first=[], script="benchmarks/orchestration.py") as result:
            pass  # only its printed output is used
        ray.shutdown()
    failed = [row for row in result.rows if row.outcome != "finished"]
    if failed:
        raise SystemExit(f"trial {failed[0].trial} ended as {failed[0].outcome}: {failed[0].error}")
    training = sum(row.train_seconds for row in result.rows)
    cost = (result.seconds - training / at_once) / len(result.rows)
    print(f"\n{len(result.rows)} trials of {arguments.reports} reports, {at_once} at once")
    print(f"starting Ray                         {ray_seconds:6.1f} s, once")
    print(f"study, from first trial to last      {result.seconds:6.1f} s")
    print(f"inside train(), all trials together  {training:6.1f} s")
    print(
        f"a trial from start to last report    {statistics.median(row.seconds for row in result.rows):6.1f} s, median"
    )
    print(f"cost of a trial beyond training      {cost:6.1f} s")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
