"""Measures how many small trials an hour a cluster runs with one trial on a GPU, and with several.

    python benchmarks/packing.py

Starts a head and two nodes on this machine, each of which declares two GPUs that it does not have, and runs one study twice:
with a GPU for each trial, and with `--pack`. Trials wait in place of computing on a GPU and then train for one step, so the
table shows whether the cluster places, runs and ends as many trials as the plan allows. It does not show how much trials that
compute on one real GPU slow each other down: a real gain is at most this one, and is less the busier a trial keeps its GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas
import tyro
from ray.cluster_utils import Cluster

ROOT = Path(__file__).resolve().parents[1]

NODES, GPUS = 2, 2

WAITING = """

_train_at_once = train


def train(*arguments, **named):
    import time

    time.sleep({seconds})
    return _train_at_once(*arguments, **named)
"""
"""What is added to `kiloseg.training.loop` in a copy of this tree."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures trials an hour with and without packing."""

    num_trials: int = 24
    """The number of trials in each study."""
    wait_s: float = 120.0
    """Seconds that a trial waits in place of computing."""
    per_gpu: int = 3
    """How many trials share a GPU."""


def main(arguments: Arguments) -> None:
    """Runs both studies and prints their trials an hour."""
    with tempfile.TemporaryDirectory(prefix="kp-", dir="/tmp") as name:
        folder = Path(name)
        tree = _waiting_tree(folder / "tree", arguments.wait_s)
        glyphs = [sys.executable, str(ROOT / "datasets" / "glyphs.py"), "--out", str(folder / "glyphs")]
        glyphs += ["--num-classes", "40", "--train-samples", "64", "--val-samples", "16"]
        subprocess.run(glyphs, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "platform")})
        # A budget of 2 GiB fits so many times into nine tenths of this memory, and once less into any smaller amount.
        packed = ["--budget", "2GiB", "--pack", f"{arguments.per_gpu * 2 / 0.9 + 0.01:.2f}GiB"]
        seconds = {}
        for title, flags in {"one trial on a GPU": ["--budget", "2GiB"], "packed": packed}.items():
            with _cluster() as address:  # a new one, so that neither study finds processes that the other has started
                seconds[title] = _seconds(tree, folder, title, flags, address, arguments.num_trials)
            hourly = arguments.num_trials * 3600 / seconds[title]
            print(f"{title:20} {seconds[title]:6.0f} s  {hourly:6.1f} trials an hour", flush=True)
    print(f"{seconds['one trial on a GPU'] / seconds['packed']:.2f} times as many with {arguments.per_gpu} on a GPU")


def _waiting_tree(tree: Path, wait_s: float) -> Path:
    """Copies the library and its experiments, with a training that waits first."""
    for name in ("platform", "experiments"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    loop = tree / "platform" / "kiloseg" / "training" / "loop.py"
    loop.write_text(loop.read_text() + WAITING.format(seconds=wait_s))
    return tree


@contextmanager
def _cluster() -> Iterator[str]:
    # The processes of a node are nicer than others by default, which on a busy machine measures the others.
    os.environ.setdefault("RAY_worker_niceness", "0")
    small = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, **small})
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=8, num_gpus=GPUS, **small)
        yield cluster.address
    finally:
        cluster.shutdown()


def _seconds(tree: Path, folder: Path, title: str, flags: list[str], address: str, num_trials: int) -> float:
    """Runs a study, and returns the seconds from its start to the end of its last trial."""
    runs = folder / title.replace(" ", "-")
    command = [sys.executable, str(tree / "experiments" / "tune_embed_dim.py"), "--data.path", str(folder / "glyphs")]
    command += ["--runs", str(runs), "--num-trials", str(num_trials), "--no-early-stopping", "--trainer.steps", "1"]
    command += ["--data.loader-workers", "0", "--optimizer.warmup-steps", "0", *flags]
    done = subprocess.run(
        command, env=os.environ | {"RAY_ADDRESS": address}, capture_output=True, text=True, check=False
    )
    found = re.search(r"^\d+ trials on .* in (\d+) s$", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise SystemExit(done.stdout + done.stderr)
    (study,) = (runs / "studies").iterdir()
    outcomes = pandas.read_csv(study / "trials.csv")["outcome"].tolist()
    if outcomes != ["finished"] * num_trials:
        raise SystemExit(f"{title}: expected {num_trials} finished trials, got {outcomes}\n{done.stdout}{done.stderr}")
    for line in done.stdout.splitlines():
        if "share a GPU" in line or "continues from" in line:
            print(f"  {line}", flush=True)
    return float(found[1])


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
