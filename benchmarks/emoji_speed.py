"""Measures scenes per second of the emoji builder, counting the whole command.

    python benchmarks/emoji_speed.py

Each round builds from the bank as a command on one process: starting Python, reading the bank, drawing, compressing and
digests. CPU seconds are of all its processes together: what a core to itself would take.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures the speed of the emoji builder."""

    bank: Path = ROOT / "runs" / "emoji" / "bank.tar"
    """The file that datasets/emoji.py --recipe-version 1 made."""
    scenes: int = 3000
    """The number of 256 x 256 scenes to draw in each round, all but one of them in split train."""
    rounds: int = 3
    """How often the command is run."""


def cpu_seconds() -> float:
    """Returns the CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(arguments: Arguments) -> None:
    """Prints a line a round, and the median."""
    rates = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            command: list[str | Path] = [
                sys.executable,
                ROOT / "datasets" / "emoji_shards.py",
                "--bank",
                arguments.bank,
                "--out",
                folder,
            ]
            command += [
                "--recipe-version",
                "1",
                "--processes",
                "1",
                "--train-samples",
                str(arguments.scenes - 1),
                "--val-samples",
                "1",
            ]
            begin, begin_cpu = time.perf_counter(), cpu_seconds()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds, used = time.perf_counter() - begin, cpu_seconds() - begin_cpu
        rates.append(arguments.scenes / used)
        print(f"{rates[-1]:.1f} scenes/CPU s, {arguments.scenes / seconds:.1f} scenes/s", flush=True)
    print(f"median {statistics.median(rates):.1f} scenes/CPU s")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
