"""The training loop: `train(config, report)`. Torch only; whoever calls decides what becomes of a report.

Order of samples, augmentation and drawn negatives are functions of (seed, step, rank), so a run that is resumed from a
checkpoint goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from kiloseg.checkpoint import load_checkpoint, load_newest, save_checkpoint
from kiloseg.config import Config, flatten
from kiloseg.data.classes import count_classes
from kiloseg.data.pipeline import TrainBatches, validation_batches
from kiloseg.data.shards import read_info
from kiloseg.evaluate import evaluate
from kiloseg.memory import PeakMemory
from kiloseg.models import build_segmenter
from kiloseg.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from kiloseg.step import autocast_of, training_step

Report = Callable[[dict[str, Any]], None]

COUNTED_STEPS = 2
"""Steps whose live tensors are counted on a CPU: the second already holds the optimiser's state."""

PEAKS = {"peak_memory_gib", "peak_memory_reserved_gib", "val/peak_memory_gib"}
"""Entries of a report that are the largest of their kind since the run began."""

_MAY_DIFFER = (
    "data.path",
    "data.cache_gib",
    "data.val_batch_size",
    "trainer.output",
    "trainer.progress",
    "trainer.keep_checkpoints",
    # A run that ran out of memory may go on with less of it.
    "trainer.checkpoint_activations",
    "trainer.compile",
)


class NonFiniteLossError(RuntimeError):
    """Training diverged."""


def train(config: Config, report: Report, *, resume: Path | None = None) -> dict[str, Any]:
    """Runs `config` to its end, in this process and, where torch.distributed is initialised, in all of its group.

    Args:
        config: the run; `data.path` must hold a data set.
        report: gets a dict with "step" and, every `report_every` steps, "train/loss", "train/images_per_s", "train/lr";
            at every validation also "val/miou", "val/pixel_accuracy", "val/iou_per_class" (a list of C floats, NaN for
            absent classes), "peak_memory_gib" of training steps, "val/peak_memory_gib" of predicting a validation batch,
            "peak_memory_kind" of both, on CUDA "peak_memory_reserved_gib" (training), and, in rank 0, "checkpoint", the
            path of the file just written. Every rank reports.
        resume: a checkpoint file, or a folder of them (the newest that is whole is taken; an empty folder is a fresh start).

    Returns:
        The last report.

    Raises:
        ValueError: a config, data set (DataError) or checkpoint that cannot work.
        NonFiniteLossError: the loss is NaN or infinite; checkpoints written before are kept.
    """
    rank, world = _group()
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    trainer = config.trainer
    info = read_info(config.data.path)
    num_classes = count_classes(config.data, info)
    if config.model.head == "embedding":
        config.loss.negatives.check_classes(num_classes)
    batches = TrainBatches(config.data, info, batch_size=trainer.batch_size, seed=trainer.seed, rank=rank, world=world)
    validation = validation_batches(config.data, info, rank=rank, world=world)

    torch.manual_seed(trainer.seed)
    segmenter = build_segmenter(config, num_classes, device)
    optimizer = build_optimizer(segmenter, config.optimizer)
    state = None if resume is None else _load(resume)
    start, last_report = 0, {}
    if state is not None:
        _check_same_run(config, state["config"])
        segmenter.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, last_report = state["step"], state["report"]
    autocast = autocast_of(trainer.precision, device)
    peak, val_peak = (PeakMemory(device, segmenter, optimizer) for _ in range(2))
    model = (
        DistributedDataParallel(segmenter, device_ids=[device] if device.type == "cuda" else None)
        if world > 1
        else segmenter
    )
    model.train()

    clock = _Clock(device)
    mean_loss = _RunningMean(device)
    samples = batches.from_step(start)
    bar = tqdm(
        total=trainer.steps, initial=start, desc="train", disable=None if trainer.progress and rank == 0 else True
    )
    for step in range(start, trainer.steps):
        warm = step >= start + COUNTED_STEPS
        # A network is compiled in the first step whose tensors are not counted.
        timed = step >= start + COUNTED_STEPS + trainer.compile
        with clock.running(images=trainer.batch_size if timed else 0):
            batch = next(samples)
            torch.manual_seed(_step_seed(trainer.seed, step, rank))
            set_learning_rate(optimizer, learning_rate_factor(step, trainer.steps, config.optimizer))
            with contextlib.nullcontext() if warm and device.type == "cpu" else peak.step(*batch):
                mean_loss.add(training_step(config, model, optimizer, *batch, autocast=autocast, world=world))
        done = step + 1
        bar.update()
        validates = done == trainer.steps or (trainer.validate_every > 0 and done % trainer.validate_every == 0)
        if not validates and done % trainer.report_every:
            continue

        last_report = {
            "step": done,
            "epoch": done / batches.steps_per_epoch,
            "train/loss": mean_loss.take(done),
            "train/images_per_s": clock.images_per_s(),
            "train/lr": optimizer.param_groups[-1]["lr"],
        }
        bar.set_postfix(loss=f"{last_report['train/loss']:.3f}")
        if validates:
            metrics = evaluate(segmenter, validation, autocast=autocast, peak=val_peak).compute()
            last_report |= {
                "val/miou": metrics["miou"],
                "val/pixel_accuracy": metrics["pixel_accuracy"],
                "val/iou_per_class": metrics["iou_per_class"].tolist(),
                "peak_memory_kind": peak.kind,
                "peak_memory_gib": peak.gib,
                "val/peak_memory_gib": val_peak.gib,
            }
            if peak.reserved_gib is not None:
                last_report["peak_memory_reserved_gib"] = peak.reserved_gib
            if state is not None:  # what came before the resumption counts too
                for name in PEAKS & last_report.keys():
                    last_report[name] = max(last_report[name], state["report"].get(name, 0.0))
            if rank == 0:
                path = save_checkpoint(
                    Path(trainer.output),
                    done,
                    {
                        "config": flatten(config),
                        "num_classes": num_classes,
                        "model": segmenter.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "report": last_report,
                    },
                    keep=trainer.keep_checkpoints,
                )
                last_report = {**last_report, "checkpoint": str(path)}
        report(last_report)
    bar.close()
    return last_report


def _group() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _step_seed(seed: int, step: int, rank: int) -> int:
    # Odd multipliers keep (seed, step, rank) apart; torch mixes the bits.
    return (seed * 1_000_003 + step) * 10_007 + rank


def _load(path: Path) -> dict[str, Any] | None:
    return load_newest(path) if path.is_dir() else load_checkpoint(path)


def _check_same_run(config: Config, stored: dict[str, Any]) -> None:
    now = flatten(config)
    changed = [name for name in now if name not in _MAY_DIFFER and now[name] != stored.get(name)]
    if changed:
        changes = "; ".join(f"{name} was {stored.get(name)!r}, is {now[name]!r}" for name in changed)
        raise ValueError(
            f"the checkpoint is of another run ({changes}); resume with its settings, or start anew in another trainer.output"
        )


class _RunningMean:
    """Mean of losses since the last report, kept on the device so that steps do not wait for it."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)
        self._count = 0

    def add(self, loss: Tensor) -> None:
        self._sum += loss
        self._count += 1

    def take(self, step: int) -> float:
        """Raises NonFiniteLossError; a NaN stays in the sum, so none is missed between reports."""
        mean = self._sum.item() / self._count
        self._sum.zero_()
        self._count = 0
        if not math.isfinite(mean):
            raise NonFiniteLossError(
                f"the training loss is {mean} before step {step}; lower optimizer.lr, add optimizer.warmup_steps or set "
                "optimizer.clip_norm"
            )
        return mean


class _Clock:
    """Images a second over the steps themselves, validation and the first (counted) steps left out."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._images = 0
        self._seconds = 0.0

    @contextlib.contextmanager
    def running(self, *, images: int) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if images:
            self._images += images
            self._seconds += time.perf_counter() - begin

    def images_per_s(self) -> float:
        """0 before any step has counted."""
        if self._device.type == "cuda":
            begin = time.perf_counter()
            torch.cuda.synchronize(self._device)
            self._seconds += time.perf_counter() - begin
        return self._images / self._seconds if self._seconds else 0.0
