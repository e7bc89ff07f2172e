"""What fits on a card?

Question: how much memory does a training step, and a validation batch, take by head and number of classes; and how large a
batch fits into a card?

Method: the very step of training, and the very prediction of validation, on fake tensors, which have shapes but no data; the
sum of live tensors is taken at every operation. No GPU is needed and next to no memory. Not counted is what CUDA's
context (about 0.5 GiB), convolution workspaces and fragmentation add: leave room for them in --fit.

    python experiments/plan_memory.py
    python experiments/plan_memory.py --classes 19 1284 --heads embedding:all embedding:nearest dense --fit 80GiB \
        --model.backbone convnext_tiny --data.crop 768 --trainer.checkpoint-activations --trainer.precision bf16
    python experiments/plan_memory.py --measure            takes the steps as well, on CUDA if there is one, and compares

Default: ResNet-50 DeepLabV3+, batch 10, crop 512, float32, SGD, 12 dimensions.

Expected: see benchmarks/README.md. A few seconds a row.
"""

from __future__ import annotations

import csv
import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg.config import Config, Data, Loss, Model, Negatives, Optimizer, Trainer
from kiloseg.data.reading.batches import Batch
from kiloseg.memory import PeakMemory, is_out_of_memory, largest_batch, parse_gib, plan, plan_evaluation
from kiloseg.models import build_segmenter
from kiloseg.overrides import head_overrides, override
from kiloseg.plotting import peaks
from kiloseg.training.evaluation import evaluate
from kiloseg.training.optimizer import build_optimizer
from kiloseg.training.precision import autocast_of
from kiloseg.training.step import training_step

PAPER_RUN = Config(
    data=Data(crop=512, val_batch_size=10),
    model=Model(arch="deeplabv3plus", backbone="resnet50", embed_dim=12),
    loss=Loss(negatives=Negatives(kind="nearest", count=7), logit="distance"),
    optimizer=Optimizer(name="sgd"),
    trainer=Trainer(batch_size=10, precision="fp32"),
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Plans the peak memory of training and evaluation."""

    run: Annotated[Config, tyro.conf.arg(name="")] = PAPER_RUN
    """The run to plan. --classes and --heads replace data.num_classes, model.head and loss.negatives.kind."""
    classes: tuple[int, ...] = (19, 150, 1_284, 10_000, 100_000)
    """The class counts."""
    heads: tuple[str, ...] = ("embedding", "dense")
    """The heads: dense; prototype; embedding, with the run's negatives; or embedding:KIND with a kind of negatives."""
    fit: str = "24GiB"
    """The memory of the card, for the largest batch that fits."""
    size: tuple[int, int] | None = None
    """The height and width of validation images, multiples of 32. None means the training crop."""
    measure: bool = False
    """Also runs the steps, on CUDA if there is one, and compares."""
    out: Path = Path("runs/plan_memory")
    """The folder for plan.csv, plan.png and plan.svg."""


def main(arguments: Arguments) -> None:
    """Plans every row, and prints and writes them."""
    budget_gib = parse_gib(arguments.fit, "--fit")
    rows = []
    shown = ["head", "num_classes", "train_gib", "eval_gib", "largest_batch"]
    if arguments.measure:
        shown += ["measured_train_gib", "train_ratio", "measured_eval_gib", "eval_ratio"]
    print("".join(f"{name:>20}" for name in [*shown, "seconds"]))
    for head in arguments.heads:
        for num_classes in arguments.classes:
            row = planned(arguments, head, num_classes, budget_gib)
            rows.append(row)
            print("".join(f"{text(row[name]):>20}" for name in [*shown, "seconds"]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "plan.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    data, model, trainer = arguments.run.data, arguments.run.model, arguments.run.trainer
    title = f"{model.backbone} {model.arch}, {trainer.batch_size} x {data.crop} px, {trainer.precision}"
    figure = peaks(rows, budget_gib=budget_gib, title=title)
    for kind in ("png", "svg"):
        figure.savefig(arguments.out / f"plan.{kind}", dpi=130)
    print(f"\n{title}; evaluation of {data.val_batch_size} images; {arguments.out}/plan.csv, plan.png, plan.svg")


def planned(arguments: Arguments, head: str, num_classes: int, budget_gib: float) -> dict[str, Any]:
    """Returns one row of the table."""
    begin = time.perf_counter()
    run = override(arguments.run, head_overrides(head))
    row: dict[str, Any] = {
        "head": head,
        "num_classes": num_classes,
        "train_gib": plan(run, num_classes=num_classes),
        "eval_gib": plan_evaluation(run, num_classes=num_classes, size=arguments.size),
        "largest_batch": largest_batch(run, budget_gib, num_classes=num_classes),
        "fit_gib": budget_gib,
    }
    if arguments.measure:
        row |= measured(run, num_classes, arguments.size or (run.data.crop, run.data.crop))
        for part in ("train", "eval"):
            peak = row[f"measured_{part}_gib"]
            row[f"{part}_ratio"] = peak and row[f"{part}_gib"] / peak
    return row | {"seconds": time.perf_counter() - begin}


def measured(run: Config, num_classes: int, size: tuple[int, int]) -> dict[str, Any]:
    """Returns peaks of two real training steps and of a validation batch, each None if memory ran out."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {"measured_train_gib": None, "measured_eval_gib": None, "measured_reserved_gib": None}
    try:
        segmenter = build_segmenter(override(run, {"model.weights": "none"}), num_classes, device)
        optimizer = build_optimizer(segmenter, run.optimizer)
        autocast = autocast_of(run.trainer.precision, device)
        peak, eval_peak = (PeakMemory(device, segmenter, optimizer) for _ in range(2))
        for _ in range(2):
            batch = random_batch(run.trainer.batch_size, (run.data.crop, run.data.crop), num_classes, device)
            with peak.step(*batch):
                training_step(run, segmenter, optimizer, *batch, autocast=autocast)
        result |= {"measured_train_gib": peak.gib, "measured_reserved_gib": peak.reserved_gib}
        batch = random_batch(run.data.val_batch_size, size, num_classes, device)
        evaluate(segmenter, [batch], autocast=autocast, peak=eval_peak)
        result["measured_eval_gib"] = eval_peak.gib
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return result


def random_batch(images: int, size: tuple[int, int], num_classes: int, device: torch.device) -> Batch:
    """Returns noise with labels."""
    return Batch(
        torch.randint(0, 256, (images, 3, *size), dtype=torch.uint8, device=device),
        torch.randint(0, num_classes, (images, *size), device=device),
    )


def text(value: Any) -> str:
    """Returns a cell of the table as text."""
    if value is None:
        return "out of memory"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except ValueError as error:
        raise SystemExit(str(error)) from error
