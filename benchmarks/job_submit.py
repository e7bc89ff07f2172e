"""Measures the time from `ray job submit` to the first training step.

    RAY_AUTH_MODE=token ray start --head --block --port=6379 --dashboard-host=127.0.0.1        in another terminal
    RAY_AUTH_MODE=token python benchmarks/job_submit.py

Submits a study of one trial to a cluster that runs on this machine, and notes when its lines come. Cold means that the head has
run no job yet: restart it for every measurement.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]

MARKS = {
    "submitted successfully": "job accepted, code uploaded",
    "Running entrypoint": "driver started",
    "starts (1 of 1)": "study open, trial started",
    "step 1/1": "first training step, validated and reported",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures the time of a submitted job."""

    dashboard: str = "http://127.0.0.1:8265"
    """The address where jobs are submitted."""


def main(arguments: Arguments) -> None:
    """Submits the job and prints when each line arrived."""
    ray = Path(sys.executable).parent / "ray"
    with tempfile.TemporaryDirectory(prefix="kiloseg-") as folder:
        glyphs = [
            sys.executable,
            str(ROOT / "datasets" / "glyphs.py"),
            "--out",
            f"{folder}/glyphs",
            "--num-classes",
            "40",
        ]
        subprocess.run([*glyphs, "--train-samples", "64", "--val-samples", "16"], check=True)
        study = (
            f"--data.path {folder}/glyphs --runs {folder} --num-trials 1 --trainer.steps 1 --trainer.validate-every 1"
        )
        command = [str(ray), "job", "submit", "--working-dir", str(ROOT), "--", sys.executable]
        command += ["experiments/tune_embed_dim.py", *study.split(), "--optimizer.warmup-steps", "0"]
        environment = os.environ | {"RAY_API_SERVER_ADDRESS": arguments.dashboard}
        begin = time.perf_counter()
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as job:
            output = []
            for line in job.stdout or ():
                output.append(line)
                for text, name in MARKS.items():
                    if text in line:
                        print(f"{time.perf_counter() - begin:6.1f} s  {name}", flush=True)
        print(f"{time.perf_counter() - begin:6.1f} s  job over")
    if job.returncode:
        raise SystemExit("".join(output))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
