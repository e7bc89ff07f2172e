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
from kiloseg.config import Config, Precision, flatten
from kiloseg.data.classes import count_classes
from kiloseg.data.pipeline import TrainBatches, validation_batches
from kiloseg.data.shards import read_info
from kiloseg.data.slots import Batch
from kiloseg.evaluate import evaluate
from kiloseg.losses import objective
from kiloseg.memory import PeakMemory
from kiloseg.models import Segmenter
from kiloseg.optimizer import build_optimizer, learning_rate_factor, set_learning_rate

Report = Callable[[dict[str, Any]], None]

COUNTED_STEPS = 2
"""Steps whose live tensors are counted on a CPU: the second already holds the optimiser's state."""

_MAY_DIFFER = ("data.path", "data.val_batch_size", "trainer.output", "trainer.progress", "trainer.keep_checkpoints")


class NonFiniteLossError(RuntimeError):
    """Training diverged."""


def train(config: Config, report: Report, *, resume: Path | None = None) -> dict[str, Any]:
    """Runs `config` to its end, in this process and, where torch.distributed is initialised, in all of its group.

    Args:
        config: the run; `data.path` must hold a data set.
        report: gets a dict with "step" and, every `report_every` steps, "train/loss", "train/images_per_s", "train/lr";
            at every validation also "val/miou", "val/pixel_accuracy", "val/iou_per_class" (a list of C floats, NaN for
            absent classes), "peak_memory_gib", "peak_memory_kind" and, in rank 0, "checkpoint", the path of the file just
            written. Every rank reports.
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
    segmenter = Segmenter(config.model, num_classes).to(device)
    if trainer.channels_last:
        segmenter.network.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(segmenter, config.optimizer)
    state = None if resume is None else _load(resume)
    start, last_report = 0, {}
    if state is not None:
        _check_same_run(config, state["config"])
        segmenter.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, last_report = state["step"], state["report"]
    autocast = _autocast(trainer.precision, device)
    peak = PeakMemory(device, segmenter, optimizer)
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
        with clock.running(images=trainer.batch_size if warm else 0):
            batch = next(samples)
            torch.manual_seed(_step_seed(trainer.seed, step, rank))
            set_learning_rate(optimizer, learning_rate_factor(step, trainer.steps, config.optimizer))
            with contextlib.nullcontext() if warm and device.type == "cpu" else peak.step(*batch):
                mean_loss.add(_step(config, model, optimizer, batch, device, autocast, world))
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
            metrics = evaluate(segmenter, validation, autocast=autocast).compute()
            last_report |= {
                "val/miou": metrics["miou"],
                "val/pixel_accuracy": metrics["pixel_accuracy"],
                "val/iou_per_class": metrics["iou_per_class"].tolist(),
                "peak_memory_gib": max(peak.gib, state["report"]["peak_memory_gib"] if state else 0.0),
                "peak_memory_kind": peak.kind,
            }
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


def _step(
    config: Config,
    model: Segmenter | DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    device: torch.device,
    autocast: torch.autocast | None,
    world: int,
) -> Tensor:
    """One optimisation step; the cross-entropy of this worker's pixels, on the device."""
    images, labels = batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
    with autocast or contextlib.nullcontext():
        outputs, table = model(images)
    cross_entropy, regulariser = objective(outputs, table, labels, config.loss)
    loss = cross_entropy * _share_of_pixels(labels) if world > 1 else cross_entropy
    if regulariser is not None:
        loss = loss + regulariser
    loss.backward()
    if config.optimizer.clip_norm > 0:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return cross_entropy.detach()


def _share_of_pixels(labels_BHW: Tensor) -> Tensor:
    """This worker's labelled pixels over the mean of all workers.

    DDP averages gradients over workers; with this factor that is the gradient of the mean over all pixels.
    """
    mine = (labels_BHW >= 0).sum().float()
    total = mine.clone()
    torch.distributed.all_reduce(total)
    return mine * torch.distributed.get_world_size() / total.clamp(min=1)


def _group() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _autocast(precision: Precision, device: torch.device) -> torch.autocast | None:
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return (
        torch.autocast(device.type, torch.bfloat16) if precision == "bf16" or (precision == "auto" and able) else None
    )


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
