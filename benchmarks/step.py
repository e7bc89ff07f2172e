"""Measures time and peak memory of a training step against the number of classes: embedding head and dense head.

    python benchmarks/step.py
    python benchmarks/step.py --classes 20 1000 10000 --batch 8 --size 256 --arch deeplabv3plus --backbone resnet50
    python benchmarks/step.py --fields                     the first head and class count by fields of the trunk

Every round runs each case once, in turn, so that a machine whose speed drifts does so for all of them; times are medians and
minima over rounds, ratios are medians of ratios within a round, against the same head at the first class count, or with --fields
against a trunk with none of them. The step is the one of training, the default the network of `make demo`. Memory is the
peak of live tensors (CPU) or the allocator's (GPU) over a step; a compiled network is counted on a CPU as if it were not.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from kiloseg.config import Config, Data, Logit, Loss, Model, Optimizer, Precision, Trainer
from kiloseg.memory import PeakMemory
from kiloseg.models import build_segmenter
from kiloseg.overrides import head_overrides, override
from kiloseg.training.optimizer import build_optimizer
from kiloseg.training.precision import autocast_of
from kiloseg.training.step import training_step

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures time and peak memory of a training step."""

    classes: tuple[int, ...] = (19, 1284)
    """The class counts; ratios are against the first."""
    heads: tuple[str, ...] = ("embedding:all", "embedding:random", "embedding:nearest", "embedding:mixed", "dense")
    """The heads: dense, or embedding: with a kind of negatives."""
    arch: str = "fpn"
    backbone: str = "tf_efficientnet_lite0"
    embed_dims: tuple[int, ...] = (12, 128)
    """The embedding dimensions. The dense head, which has none, runs with the first alone."""
    logit: Logit = "cosine"
    """The kind of logit: cosine, as in `make demo`, or distance."""
    count: int = 8
    """The number of negatives per pixel, if the kind has a number."""
    size: int = 96
    """The side of the square images in pixels."""
    batch: int = 16
    """The number of images per step."""
    precision: Precision = "fp32"
    channels_last: bool = True
    checkpoint_activations: bool = False
    compile: bool = False
    """These four as in `trainer`."""
    fields: bool = False
    """Compares the fields of the trunk, one at a time on top of channels_last, instead of heads and class counts."""
    rounds: int = 5
    """How often each case is run."""
    cpu_time: bool = False
    """Measures processor time instead of wall time: for a CPU that other work shares."""
    csv: Path = Path("runs/benchmarks/step.csv")
    """The file that the table is written to."""


FIELDS: dict[str, dict[str, Any]] = {
    "none": {"trainer.channels_last": False},
    "channels_last": {},
    "checkpoint_activations": {"trainer.checkpoint_activations": True},
    "bf16": {"trainer.precision": "bf16"},
    "bf16, checkpoint_activations": {"trainer.precision": "bf16", "trainer.checkpoint_activations": True},
    "compile": {"trainer.compile": True},
}
"""--fields compares these; channels_last is on in all but the first."""


class Case:
    """Holds one head at one class count, ready to take steps."""

    def __init__(self, name: str, config: Config, num_classes: int, device: torch.device, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.num_classes = num_classes
        self.device = device
        self.config = config
        torch.manual_seed(0)
        self.segmenter = build_segmenter(config, num_classes, device)
        self.optimizer = build_optimizer(self.segmenter, config.optimizer)
        self.autocast = autocast_of(config.trainer.precision, device)
        images, side = config.trainer.batch_size, config.data.crop
        self.images = torch.randint(0, 255, (images, 3, side, side), dtype=torch.uint8, device=device)
        self.labels = torch.randint(0, num_classes, (images, side, side), device=device)
        self.seconds: list[float] = []

    def step(self) -> None:
        """Takes one optimization step."""
        training_step(self.config, self.segmenter, self.optimizer, self.images, self.labels, autocast=self.autocast)

    def timed_step(self) -> None:
        """Takes one step and records the seconds."""
        begin = self.clock()
        self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(self.clock() - begin)

    def peak_gib(self) -> float:
        """Returns the peak of a step that follows at least one other."""
        peak = PeakMemory(self.device, self.segmenter, self.optimizer)
        with peak.step(self.images, self.labels):
            self.step()
        return peak.gib


def cases_of(arguments: Arguments, device: torch.device) -> list[Case]:
    """Heads by class counts, or the first of both by fields of the trunk."""
    base = Config(
        data=Data(crop=arguments.size),
        model=Model(arch=arguments.arch, backbone=arguments.backbone),
        loss=Loss(logit=arguments.logit),
        optimizer=Optimizer(name="adamw"),
        trainer=Trainer(
            batch_size=arguments.batch,
            precision=arguments.precision,
            channels_last=arguments.channels_last,
            checkpoint_activations=arguments.checkpoint_activations,
            compile=arguments.compile,
        ),
    )

    def run(head: str, num_classes: int, dim: int) -> Config:
        count = min(arguments.count, num_classes - 1)
        return override(base, {**head_overrides(head), "loss.negatives.count": count, "model.embed_dim": dim})

    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if arguments.fields:
        one = run(arguments.heads[0], arguments.classes[0], arguments.embed_dims[0])
        return [
            Case(name, override(one, values), arguments.classes[0], device, clock) for name, values in FIELDS.items()
        ]
    return [
        Case(head, run(head, count, dim), count, device, clock)
        for dim in arguments.embed_dims
        for head in arguments.heads
        if head != "dense" or dim == arguments.embed_dims[0]
        for count in arguments.classes
    ]


def main(arguments: Arguments) -> None:
    """Measures all cases and prints the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = cases_of(arguments, device)
    group = len(cases) if arguments.fields else len(arguments.classes)
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
        first_column = "fields" if arguments.fields else "head"
        writer.writerow(
            [
                first_column,
                "embed_dim",
                "num_classes",
                "step_ms",
                "least_ms",
                "step_ratio",
                "peak_memory_gib",
                "peak_ratio",
            ]
        )
        print(
            f"{first_column:30}{'dim':>5}{'classes':>8}{'step ms':>10}{'least':>10}{'ratio':>8}{'peak GiB':>10}{'ratio':>8}"
        )
        for index, (case, peak) in enumerate(zip(cases, peaks, strict=True)):
            first = index - index % group
            ratio = statistics.median(
                mine / base for mine, base in zip(case.seconds, cases[first].seconds, strict=True)
            )
            dim = "-" if case.name == "dense" else case.config.model.embed_dim
            step_ms, least_ms = 1000 * statistics.median(case.seconds), 1000 * min(case.seconds)
            writer.writerow(
                [
                    case.name,
                    dim,
                    case.num_classes,
                    round(step_ms, 2),
                    round(least_ms, 2),
                    round(ratio, 3),
                    round(peak, 4),
                    round(peak / peaks[first], 4),
                ]
            )
            print(
                f"{case.name:30}{dim:>5}{case.num_classes:>8,}{step_ms:>10.1f}{least_ms:>10.1f}{ratio:>8.2f}"
                f"{peak:>10.3f}{peak / peaks[first]:>8.3f}"
            )
    print(f"\n{device.type}, {torch.get_num_threads()} threads, torch {torch.__version__}; {arguments.csv}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except ValueError as error:
        raise SystemExit(str(error)) from error
