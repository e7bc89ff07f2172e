"""Measures what the thousandth trial of a study costs compared with the first.

    python benchmarks/many_trials.py
    python benchmarks/many_trials.py --num-trials 100

The study runs on real Ray Tune, Optuna, ASHA and MLflow (SQLite), with the callbacks of every study, but its trials do not train:
they report numbers as a training would and end. What remains is the driver's work for each trial. For each part of the study it
reports length and CPU time per trial, of the driver and of the whole machine, the driver's memory, and the sizes of Tune's
snapshot of the study and of the database.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from ray import tune

import kiloseg.tuning.search
import kiloseg.tuning.trials
from kiloseg.config import Config, Data, Trainer
from kiloseg.tuning.reports import HISTORY, IOU_PER_CLASS, METRIC, STEP
from kiloseg.tuning.space import Space, choice, log
from kiloseg.tuning.trial import TrialSettings

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES = 40
STEPS = (100, 200, 300)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Describes a study of trials that do not train."""

    num_trials: int = 1000
    """The number of trials in the study."""
    max_concurrent: int = 2
    """The number of trials at once."""
    parts: int = 10
    """The number of rows in the table."""


class Moment(NamedTuple):
    """Holds the driver's state at a time."""

    seconds: float
    cpu_seconds: float
    machine_cpu_seconds: float
    """The CPU time of all processes of the machine."""
    trials: int
    """The number of trials that have reported."""
    memory_mib: float
    snapshot_mib: float
    database_mib: float


class Watch(threading.Thread):
    """Records a moment every second."""

    def __init__(self, runs: Path) -> None:
        super().__init__(daemon=True)
        self.runs = runs
        self.moments: list[Moment] = []
        self.reported: set[Path] = set()
        self.over = threading.Event()

    def run(self) -> None:
        """Records until `over` is set."""
        while not self.over.wait(1.0):
            self.note()

    def note(self) -> None:
        """Records the present moment."""
        # Whoever looks at all trials each time grows with them, and this takes the driver's time.
        for folder in self.runs.glob("ray/*/"):
            trials = set(folder.iterdir()) - self.reported
            self.reported |= {trial for trial in trials if (trial / "result.json").exists()}
        snapshots = [*self.runs.glob("ray/*/experiment_state-*.json"), *self.runs.glob("ray/*/searcher-state-*.pkl")]
        self.moments.append(
            Moment(
                time.perf_counter(),
                time.process_time(),
                _machine_cpu_seconds(),
                len(self.reported),
                _resident_mib(),
                sum(path.stat().st_size for path in snapshots if path.exists()) / 2**20,
                (self.runs / "mlflow.db").stat().st_size / 2**20 if (self.runs / "mlflow.db").exists() else 0.0,
            )
        )


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _machine_cpu_seconds() -> float:
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def fake_trial(overrides: Mapping[str, Any], settings: TrialSettings) -> None:
    """Reports what a training reports, each time better; how good is a function of the settings."""
    digest = hashlib.sha256(repr(sorted(overrides.items())).encode()).digest()
    best = 0.2 + 0.3 * digest[0] / 255 - abs(overrides["optimizer.lr"] - 0.003) * 10
    for step in STEPS:
        numbers = {
            METRIC: max(best * step / STEPS[-1], 0.0),
            "val/pixel_accuracy": 0.8,
            "train/loss": 3.0 - best,
            "train/images_per_s": 50.0,
            "peak_memory_gib": 0.2,
            "val/peak_memory_gib": 0.1,
        }
        between = [{STEP: step - 50, "train/loss": 3.0, "train/images_per_s": 50.0}]
        outcome = {"outcome": "finished", "oom": 0, "startup_s": 0.0, "train_s": 0.0, "peak_memory_kind": "none"}
        result = {STEP: step, HISTORY: [*between, {STEP: step, **numbers}], **outcome, **numbers}
        if step == STEPS[-1]:
            result[IOU_PER_CLASS] = [0.5] * NUM_CLASSES
        tune.report(result)


def main(arguments: Arguments) -> None:
    """Runs the study and prints the table."""
    with tempfile.TemporaryDirectory(prefix="kiloseg-") as folder:
        runs = Path(folder)
        data = runs / "glyphs"
        glyphs = [sys.executable, str(ROOT / "datasets" / "glyphs.py"), "--out", str(data)]
        subprocess.run(
            [*glyphs, "--num-classes", str(NUM_CLASSES), "--train-samples", "64", "--val-samples", "16"], check=True
        )
        base = Config(
            data=Data(path=str(data), num_classes=NUM_CLASSES),
            trainer=Trainer(steps=STEPS[-1], validate_every=STEPS[0]),
        )
        study = kiloseg.tuning.search.Search(
            name="many_trials",
            num_trials=arguments.num_trials,
            max_concurrent=arguments.max_concurrent,
            runs=folder,
        )
        space = Space(
            base,
            (
                choice("model.embed_dim", [4, 8, 16, 32]),
                choice("loss.negatives.kind", ["all", "nearest", "random"]),
                choice("loss.temperature", [10.0, 20.0, 40.0]),
                log("optimizer.lr", 1e-3, 1e-2),
            ),
        )
        setattr(kiloseg.tuning.trials, "run_trial", fake_trial)  # noqa: B010 (the name is not exported)
        watch = Watch(runs)
        watch.start()
        with kiloseg.tuning.search.search(study, space, first=[], script="benchmarks/many_trials.py") as result:
            watch.over.set()
            watch.join()
            watch.note()
            ended = [row for row in result.rows if row.outcome in ("finished", "stopped")]
            if len(ended) != arguments.num_trials:
                raise SystemExit(f"only {len(ended)} of {arguments.num_trials} trials ended as they should")
            _print_table(watch.moments, arguments)
            peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"\n{len(ended)} trials in {result.seconds:.0f} s; peak memory of the driver {peak_gib:.2f} GiB")


def _print_table(moments: list[Moment], arguments: Arguments) -> None:
    print(
        "\n| trials | s a trial | driver CPU s a trial | CPU s of the machine a trial | driver MiB "
        "| Tune's snapshot MiB | MLflow database MiB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    # What comes before the first trial has reported is starting, not part of any trial.
    edges = [arguments.num_trials * part // arguments.parts for part in range(arguments.parts + 1)]
    edges[0] = 1
    for first, last in itertools.pairwise(edges):
        begin = next(moment for moment in moments if moment.trials >= first)
        end = next(moment for moment in moments if moment.trials >= last)
        count = max(end.trials - begin.trials, 1)
        print(
            f"| {begin.trials} to {end.trials} | {(end.seconds - begin.seconds) / count:.2f} "
            f"| {(end.cpu_seconds - begin.cpu_seconds) / count:.2f} "
            f"| {(end.machine_cpu_seconds - begin.machine_cpu_seconds) / count:.2f} "
            f"| {end.memory_mib:.0f} | {end.snapshot_mib:.2f} | {end.database_mib:.1f} |"
        )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
