"""Time and peak memory of a training step against the number of classes: embedding head and dense head.

    python benchmarks/step.py
    python benchmarks/step.py --classes 20 1000 10000 --batch 8 --size 256 --arch deeplabv3plus --backbone resnet50

Every round runs each case once, in turn, so that a machine whose speed drifts does so for all of them; times are medians
over rounds, ratios are medians of ratios within a round, against the same head at the first class count. The default is
the network of `make demo`. Memory is the peak of live tensors (CPU) or the allocator's (GPU) over a step.
"""

from __future__ import annotations

import csv
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from kiloseg.config import Config, Logit, Loss, Model, Negatives, NegativesKind, Optimizer
from kiloseg.losses import objective
from kiloseg.memory import PeakMemory
from kiloseg.models import Segmenter
from kiloseg.optimizer import build_optimizer


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Time and peak memory of a training step."""

    classes: tuple[int, ...] = (20, 1000)
    """Class counts; the first is what ratios are against."""
    heads: tuple[str, ...] = ("embedding:all", "embedding:random", "embedding:nearest", "embedding:mixed", "dense")
    """dense, or embedding: with a kind of negatives."""
    arch: str = "fpn"
    backbone: str = "tf_efficientnet_lite0"
    embed_dim: int = 12
    logit: Logit = "cosine"
    """cosine, as in `make demo`, or distance."""
    count: int = 8
    """Negatives per pixel where the kind has a number."""
    size: int = 96
    """Side of the square images in pixels."""
    batch: int = 16
    """Images per step."""
    rounds: int = 5
    """Times each case is run."""
    csv: Path = Path("runs/benchmarks/step.csv")
    """Where the table is written."""


class Case:
    """One head at one class count, ready to take steps."""

    def __init__(self, arguments: Arguments, head: str, num_classes: int, device: torch.device) -> None:
        self.head = head
        self.num_classes = num_classes
        self.device = device
        name, _, kind = head.partition(":")
        negatives = Negatives(kind=_kind(kind), count=min(arguments.count, num_classes - 1))
        model = Model(
            arch=arguments.arch,
            backbone=arguments.backbone,
            embed_dim=arguments.embed_dim,
            head="dense" if name == "dense" else "embedding",
        )
        self.config = Config(
            model=model, loss=Loss(negatives=negatives, logit=arguments.logit), optimizer=Optimizer(name="adamw")
        )
        torch.manual_seed(0)
        self.segmenter = Segmenter(model, num_classes).to(device)
        self.segmenter.network.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.segmenter, self.config.optimizer)
        side = arguments.size
        self.images = torch.randint(0, 255, (arguments.batch, 3, side, side), dtype=torch.uint8, device=device)
        self.labels = torch.randint(0, num_classes, (arguments.batch, side, side), device=device)
        self.seconds: list[float] = []

    def step(self) -> None:
        """One optimisation step."""
        outputs, table = self.segmenter(self.images)
        cross_entropy, regulariser = objective(outputs, table, self.labels, self.config.loss)
        (cross_entropy if regulariser is None else cross_entropy + regulariser).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def timed_step(self) -> None:
        """One step, its seconds kept."""
        begin = time.perf_counter()
        self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(time.perf_counter() - begin)

    def peak_gib(self) -> float:
        """Peak of a step that follows at least one other."""
        peak = PeakMemory(self.device, self.segmenter, self.optimizer)
        with peak.step(self.images, self.labels):
            self.step()
        return peak.gib


def _kind(text: str) -> NegativesKind:
    kinds: dict[str, NegativesKind] = {
        "all": "all",
        "nearest": "nearest",
        "random": "random",
        "mixed": "mixed",
        "": "all",
    }
    if text not in kinds:
        raise SystemExit(
            f"--heads: no kind of negatives is called {text!r}; use dense or embedding:KIND, KIND of {', '.join(kinds)}"
        )
    return kinds[text]


def main(arguments: Arguments) -> None:
    """Measures all cases and prints the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = [Case(arguments, head, count, device) for head in arguments.heads for count in arguments.classes]
    peaks = []
    for case in cases:
        case.step()
        peaks.append(case.peak_gib())
    for _ in range(arguments.rounds):
        for case in cases:
            case.timed_step()
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["head", "num_classes", "step_ms", "step_ratio", "peak_memory_gib", "peak_ratio"])
        print(f"{'head':20}{'classes':>8}{'step ms':>10}{'ratio':>8}{'peak GiB':>10}{'ratio':>8}")
        for index, (case, peak) in enumerate(zip(cases, peaks, strict=True)):
            first = index - index % len(arguments.classes)
            ratio = statistics.median(
                mine / base for mine, base in zip(case.seconds, cases[first].seconds, strict=True)
            )
            step_ms = 1000 * statistics.median(case.seconds)
            writer.writerow(
                [
                    case.head,
                    case.num_classes,
                    round(step_ms, 2),
                    round(ratio, 3),
                    round(peak, 4),
                    round(peak / peaks[first], 4),
                ]
            )
            print(
                f"{case.head:20}{case.num_classes:>8,}{step_ms:>10.1f}{ratio:>8.2f}{peak:>10.3f}{peak / peaks[first]:>8.3f}"
            )
    print(f"\n{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}; {arguments.csv}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
