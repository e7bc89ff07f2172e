"""How fast MLflow's server answers with label maps, and whether its memory grows.

    python benchmarks/serve.py
    python benchmarks/serve.py --source runs/train --requests 1000

This writes an MLflow model (of --source, or of an untrained network), starts `mlflow models serve` on loopback with one process,
and sends images to it from one client and from several at once. It reports requests a second, the median and the 99th percentile
of their times, and the resident memory of the server's processes after each tenth of the requests.
"""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import tyro
from PIL import Image

from kiloseg.config import Config, Model
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.loading import content_of
from kiloseg.inference.registration import save_mlflow_model
from kiloseg.models import Segmenter
from kiloseg.overrides import flatten


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures a served model."""

    source: str | None = None
    """The model, as kiloseg.load accepts it. None: an untrained network."""
    classes: int = 1284
    """The number of classes of the untrained network."""
    arch: str = "fpn"
    """Its architecture."""
    backbone: str = "tf_efficientnet_lite0"
    """Its backbone."""
    size: int = 512
    """The side of the image."""
    requests: int = 1000
    """The number of requests for each number of clients."""
    clients: tuple[int, ...] = (1, 8)
    """The numbers of clients that ask at once."""
    threads: int = 2
    """The threads of the server's network."""


def content(arguments: Arguments) -> dict[str, Any]:
    """Returns the content of a checkpoint."""
    if arguments.source is not None:
        return content_of(arguments.source)
    torch.manual_seed(0)
    config = Config(model=Model(arch=arguments.arch, backbone=arguments.backbone))
    return {
        "config": flatten(config),
        "step": 0,
        "num_classes": arguments.classes,
        "classes": ModelClasses.unnamed(arguments.classes).record(),
        "model": Segmenter(config.model, arguments.classes).state_dict(),
        "location": "benchmark",
    }


class Server:
    """Runs `mlflow models serve` on loopback inside a `with` block.

    Args:
        model: the folder of an MLflow model.
        threads: the number of threads of its network.
    """

    def __init__(self, model: Path, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "serve",
            "--model-uri",
            str(model),
            "--env-manager",
            "local",
        ]
        programs = Path(sys.executable).parent  # MLflow starts uvicorn by its name
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--timeout", "600"],
            env=os.environ | {"OMP_NUM_THREADS": str(threads), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> Server:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}/ping", timeout=10):
                    return self
            except OSError:
                time.sleep(0.5)
        self.__exit__()
        raise SystemExit("mlflow models serve did not start")

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)

    def ask(self, body: bytes) -> float:
        """Sends a request; returns the seconds until its answer was read."""
        request = urllib.request.Request(f"{self.address}/invocations", body, {"Content-Type": "application/json"})
        start = time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as answer:
            answer.read()
        return time.perf_counter() - start

    def resident_mib(self) -> float:
        """Returns the resident memory of the server and its processes, in MiB."""
        own = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (own, *own.children(recursive=True))) / 2**20

    def cpu_s(self) -> float:
        """Returns the CPU seconds of the server and its processes."""
        own = psutil.Process(self.process.pid)
        times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
        return sum(time.user + time.system for time in times)


def request_body(size: int) -> bytes:
    """Returns a request with one JPEG of colored squares."""
    small = np.random.default_rng(0).integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)
    image = io.BytesIO()
    Image.fromarray(small).resize((size, size)).save(image, "JPEG", quality=90)
    row = [base64.b64encode(image.getvalue()).decode()]
    return json.dumps({"dataframe_split": {"columns": ["image"], "data": [row]}}).encode()


def main(arguments: Arguments) -> None:
    """Prints a line for each number of clients."""
    body = request_body(arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_mlflow_model(content(arguments), model)
        with Server(model, arguments.threads) as server:
            for _ in range(5):
                server.ask(body)
            for clients in arguments.clients:
                seconds: list[float] = []
                memory = [server.resident_mib()]
                start, cpu_start = time.perf_counter(), server.cpu_s()
                part = max(arguments.requests // 10, 1)
                with ThreadPoolExecutor(clients) as pool:
                    while len(seconds) < arguments.requests:
                        seconds += pool.map(server.ask, [body] * part)
                        memory.append(server.resident_mib())
                spent, cpu = time.perf_counter() - start, server.cpu_s() - cpu_start
                p99 = float(np.quantile(seconds, 0.99))
                print(
                    f"{clients} clients: {len(seconds) / spent:.2f} requests/s, median {1000 * statistics.median(seconds):.0f} ms, "
                    f"p99 {1000 * p99:.0f} ms, {1000 * cpu / len(seconds):.0f} CPU ms a request; server's memory, MiB: "
                    + ", ".join(f"{value:.0f}" for value in memory),
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
