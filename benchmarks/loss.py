"""Measures time and memory of the loss, forward and backward, against what a user would use instead.

    python benchmarks/loss.py
    python benchmarks/loss.py --classes 100000 --losses all:cosine random:255 --max-scores 20e9
    python benchmarks/loss.py --cpu-time --threads 1       on a machine that other work shares

Pixels come from embeddings at stride 4. Every round runs each loss once, in turn, so that a machine whose speed drifts does
so for all of them; times are medians and minima, ratios are medians of ratios within a round. Where the pixels times the classes
would exceed `--max-scores`, images are made smaller for that class count, for all losses alike; losses that need more
memory than `--memory-gib` are left out of that row and say so. The rival `official` needs `pip install faiss-cpu`; on a
GPU `cut-cross-entropy` and `liger-kernel` are rivals where they are installed. The last two are predictions: `nearest_class`, and
logits that are upsampled and compared.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import math
import os
import statistics
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

import rivals
from kiloseg.config import Logit, Negatives, NegativesKind
from kiloseg.losses import embedding_cross_entropy
from kiloseg.memory import GIB, PeakMemory
from kiloseg.models import nearest_class

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

PACKAGES = {"official": "faiss", "cut_cross_entropy": "cut_cross_entropy", "liger": "liger_kernel"}
PREDICTIONS = ("nearest_class", "dense_argmax")
"""These give labels, without a backward pass."""
COPIES = {"dense": 4, "dense_argmax": 1}
"""How often logits at full resolution exist: for the loss upsampled, as their log-softmax, and with a gradient of each."""
GPU_ONLY = ("cut_cross_entropy", "liger")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures time and memory of the loss against its rivals."""

    classes: tuple[int, ...] = (19, 150, 1284, 10000, 100000)
    dims: tuple[int, ...] = (12, 64, 128)
    """The embedding dimensions."""
    losses: tuple[str, ...] = (
        "all:cosine", "all:distance", "nearest:8", "random:255", "mixed:8",
        "all:cosine:torch", "all:distance:torch", "nearest:8:torch", "random:255:torch", "mixed:8:torch",
        "dense", "torch_linear", "official:7", "cut_cross_entropy", "liger", "nearest_class", "dense_argmax",
    )  # fmt: skip
    """KIND[:COUNT][:LOGIT][:torch] of kiloseg's own (distance unless said; with :torch without its kernels), or a rival."""
    batch: int = 2
    size: int = 256
    """The side of the images in pixels, a multiple of 4."""
    rounds: int = 5
    max_scores: float = 4e8
    """The largest product of pixels and classes."""
    memory_gib: float = 8.0
    """Losses that need more memory than this are left out, in GiB."""
    threads: int | None = None
    """The number of torch threads. None lets torch choose."""
    cpu_time: bool = False
    """Measures processor time instead of wall time: for a CPU that other work shares."""
    csv: Path = Path("runs/benchmarks/loss.csv")


class Case:
    """Holds one loss with its own copy of the inputs."""

    def __init__(self, name: str, num_classes: int, dim: int, arguments: Arguments, device: torch.device) -> None:
        self.name = name
        self.loss = _loss(name, num_classes)
        side = arguments.size
        while arguments.batch * side**2 * num_classes > arguments.max_scores and side > 16:
            side -= 4
        self.pixels = arguments.batch * side**2
        generator = torch.Generator().manual_seed(0)
        channels = num_classes if name in COPIES else dim
        self.fits = COPIES.get(name, 0) * 4 * self.pixels * num_classes < arguments.memory_gib * GIB
        self.clock = time.process_time if arguments.cpu_time else time.perf_counter
        self.seconds: list[float] = []
        self.peak_mib = math.nan
        if not self.fits:
            return
        cells = (arguments.batch, channels, side // 4, side // 4)
        self.embeddings = torch.randn(cells, generator=generator).to(device).requires_grad_()
        self.table = torch.randn(num_classes, dim, generator=generator).to(device).requires_grad_()
        self.labels = torch.randint(num_classes, (arguments.batch, side, side), generator=generator).to(device)

    def run(self) -> None:
        """Runs forward and, except for predictions, backward."""
        if self.name in PREDICTIONS:
            with torch.no_grad():
                self.loss(self.embeddings, self.table, self.labels)
            return
        self.loss(self.embeddings, self.table, self.labels).backward()
        self.embeddings.grad = self.table.grad = None

    def measure_memory(self) -> None:
        """Measures the peak memory beyond the inputs, in MiB."""
        inputs = (self.embeddings, self.table, self.labels)
        peak = PeakMemory(self.embeddings.device)
        on_gpu = self.embeddings.is_cuda  # where those of the other cases are allocated as well
        before = torch.cuda.memory_allocated() if on_gpu else sum(tensor.nbytes for tensor in inputs)
        with peak.step(*inputs):
            self.run()
        self.peak_mib = peak.gib * 1024 - before / 2**20

    def timed_run(self) -> None:
        """Runs once and records the seconds."""
        begin = self.clock()
        self.run()
        if self.embeddings.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(self.clock() - begin)


def _loss(name: str, num_classes: int) -> Loss:
    first, *words = name.split(":")
    counts = [min(int(word), num_classes - 1) for word in words if word.isdigit()]
    if first in typing.get_args(NegativesKind):
        negatives = Negatives(kind=typing.cast(NegativesKind, first), count=counts[0] if counts else 8)
        logit: Logit = "cosine" if "cosine" in words else "distance"
        ours = functools.partial(embedding_cross_entropy, negatives=negatives, logit=logit)
        return functools.partial(_without_kernels, ours) if "torch" in words else ours
    if first == "nearest_class":
        return _predict
    if first == "official":
        return functools.partial(rivals.official, count=counts[0] if counts else 7)
    if not hasattr(rivals, first):
        raise SystemExit(f"--losses {name}: no loss is called {first!r}")
    rival: Loss = getattr(rivals, first)
    return rival


def _predict(pixels_BDhw: Tensor, table_CD: Tensor, labels_BHW: Tensor) -> Tensor:
    _, H, W = labels_BHW.shape
    return nearest_class(pixels_BDhw, table_CD, size=(H, W))


def _without_kernels(loss: Loss, *inputs: Tensor) -> Tensor:
    """The loss by torch's operations alone; backward gives what forward has computed."""
    before = {name: os.environ.get(name) for name in ("KILOSEG_NATIVE", "KILOSEG_TRITON")}
    os.environ.update(dict.fromkeys(before, "0"))
    try:
        return loss(*inputs)
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _can_run(name: str, device: torch.device) -> bool:
    first = name.split(":")[0]
    if first in GPU_ONLY and device.type != "cuda":
        return False
    if first in PACKAGES and importlib.util.find_spec(PACKAGES[first]) is None:
        print(f"{name} is left out: {PACKAGES[first]} is not installed (pip install 'kiloseg[benchmarks]')")
        return False
    return True


def main(arguments: Arguments) -> None:
    """Measures all cases, class count by class count, and prints the table."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    losses = [name for name in arguments.losses if _can_run(name, device)]
    others = [name for name in losses if hasattr(rivals, name.split(":")[0])]
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    header = [
        "classes",
        "dim",
        "loss",
        "pixels",
        "ms",
        "min_ms",
        "peak_mib",
        *(f"x_{name.split(':')[0]}" for name in others),
    ]
    with arguments.csv.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        print("{:>8}{:>5} {:18}{:>9}{:>10}{:>10}{:>10}".format(*header) + _cells(header[7:]), flush=True)
        for dim in arguments.dims:
            for num_classes in arguments.classes:
                cases = [Case(name, num_classes, dim, arguments, device) for name in losses]
                running = [case for case in cases if case.fits]
                for case in running:
                    case.run()
                    case.measure_memory()
                for _ in range(arguments.rounds):
                    for case in running:
                        case.timed_run()
                for case in cases:
                    if not case.fits:
                        print(f"{num_classes:>8}{dim:>5} {case.name:18}{case.pixels:>9}  over --memory-gib")
                        writer.writerow([num_classes, dim, case.name, case.pixels, "", "", ""] + [""] * len(others))
                        continue
                    ratios = [_ratio(case, rival, running) for rival in others]
                    ms, least = 1000 * statistics.median(case.seconds), 1000 * min(case.seconds)
                    writer.writerow(
                        [
                            num_classes,
                            dim,
                            case.name,
                            case.pixels,
                            round(ms, 2),
                            round(least, 2),
                            round(case.peak_mib, 2),
                        ]
                        + ["" if ratio is None else round(ratio, 3) for ratio in ratios]
                    )
                    shown = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
                    print(
                        f"{num_classes:>8}{dim:>5} {case.name:18}{case.pixels:>9}{ms:>10.1f}{least:>10.1f}{case.peak_mib:>10.1f}"
                        + _cells(shown),
                        flush=True,
                    )
                file.flush()
    print(f"\n{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}; {arguments.csv}")


def _cells(texts: list[str]) -> str:
    return "".join(f"{text:>20}" for text in texts)


def _ratio(case: Case, rival: str, cases: list[Case]) -> float | None:
    """Returns the time of a case as a multiple of a rival's, or None if that did not run."""
    found = [other for other in cases if other.name == rival]
    if not found:
        return None
    return statistics.median(mine / theirs for mine, theirs in zip(case.seconds, found[0].seconds, strict=True))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
