"""The training loop: `train(config, report)`. Torch only; whoever calls decides what becomes of a report.

Order of samples, augmentation and drawn negatives are functions of (seed, step, rank), so a run that is resumed from a
checkpoint goes on exactly as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from kiloseg.config import Config
from kiloseg.data.classes import count_classes
from kiloseg.data.description import read_info
from kiloseg.data.reading.bad_samples import texts_of
from kiloseg.data.reading.batches import Batch
from kiloseg.data.reading.loader import TrainBatches, validation_batches
from kiloseg.memory import PeakMemory
from kiloseg.models import build_segmenter
from kiloseg.overrides import differences, flatten
from kiloseg.training.checkpoint import load_checkpoint, load_newest, save_checkpoint
from kiloseg.training.evaluation import evaluate
from kiloseg.training.meters import Clock, RunningMean
from kiloseg.training.meters import NonFiniteLossError as NonFiniteLossError
from kiloseg.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from kiloseg.training.step import autocast_of, training_step

Report = Callable[[dict[str, Any]], None]

COUNTED_STEPS = 2
"""Steps whose live tensors are counted on a CPU: the second already holds the optimiser's state."""


class LeftError(RuntimeError):
    """Training was asked to leave and did, after writing a checkpoint."""


def train(
    config: Config,
    report: Report,
    *,
    resume: Path | str | dict[str, Any] | None = None,
    leave: Callable[[], bool] | None = None,
) -> dict[str, Any]:
    """Runs `config` to its end, in this process and, where torch.distributed is initialised, in all of its group.

    Args:
        config: the run; `data.path` must hold a data set.
        report: gets a dict with "step" and, every `report_every` steps, "train/loss", "train/images_per_s", "train/lr";
            at every validation also "val/miou", "val/pixel_accuracy", "val/iou_per_class" (a list of C floats, NaN for
            absent classes), "peak_memory_gib" of training steps, "val/peak_memory_gib" of predicting a validation batch,
            "peak_memory_kind" of both, on CUDA "peak_memory_reserved_gib" (training), where `data.max_bad_samples` is not
            0 "train/bad_samples" and "bad_samples" (how many were left out so far, and what was wrong with each), and, in
            rank 0, "checkpoint", the path of the file just written. Every rank reports.
        resume: a checkpoint file, or a folder of them (the newest that is whole is taken; an empty folder is a fresh start),
            by path or URL; or the state of a checkpoint, whose tensors are then taken out of it.
        leave: asked after every step and before every validation batch, with several workers at reports only; once it says
            yes (see `kiloseg.training.preemption`) a checkpoint is written and reported ("step", "checkpoint" and nothing
            else), from which the run goes on exactly, and training ends with LeftError.

    Returns:
        The last report.

    Raises:
        ValueError: a config, data set (DataError) or checkpoint that cannot work.
        NonFiniteLossError: the loss is NaN or infinite; checkpoints written before are kept.
        LeftError: `leave` said yes.
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
    batches = TrainBatches(config.data, info, batch_size=trainer.batch_size, seed=trainer.seed, rank=rank, world=world)
    validation = validation_batches(config.data, info, rank=rank, world=world)

    torch.manual_seed(trainer.seed)
    segmenter = build_segmenter(config, num_classes, device)
    optimizer = build_optimizer(segmenter, config.optimizer)
    state = resume if resume is None or isinstance(resume, dict) else _load(resume)
    start, last_report = 0, {}
    reports: list[dict[str, Any]] = []
    written: dict[str, str] = {}
    mean_loss = RunningMean(device)
    if state is not None:
        _check_same_run(config, state["config"])
        segmenter.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))
        start, last_report, reports = state["step"], state["report"], list(state.get("reports", []))
        mean_loss.restore(state.get("mean_loss", (0.0, 0)))
        if "bad_samples" in state:
            batches.bad_samples.restore(state["bad_samples"], rank)
    unreported = state is not None and state.get("unreported", False)
    _check_same_step(start, world, device)
    autocast = autocast_of(trainer.precision, device)
    peak, val_peak = (PeakMemory(device, segmenter, optimizer) for _ in range(2))
    model = (
        DistributedDataParallel(segmenter, device_ids=[device] if device.type == "cuda" else None)
        if world > 1
        else segmenter
    )
    model.train()

    clock = Clock(device)
    samples = batches.from_step(start)
    bar = tqdm(
        total=trainer.steps, initial=start, desc="train", disable=None if trainer.progress and rank == 0 else True
    )

    def peaks() -> dict[str, float]:
        now = {"peak_memory_gib": peak.gib, "val/peak_memory_gib": val_peak.gib}
        if peak.reserved_gib is not None:
            now["peak_memory_reserved_gib"] = peak.reserved_gib
        # What came before the resumption counts too.
        before = {} if state is None else state["report"] | state.get("peaks", {})
        return {name: max(value, before.get(name, 0.0)) for name, value in now.items()}

    def save(done: int, bad_samples: dict[str, Tensor], **more: Any) -> dict[str, str]:
        """Where it was written, in rank 0, which alone writes."""
        if rank:
            return {}
        content = {
            "config": flatten(config),
            "num_classes": num_classes,
            "model": segmenter.state_dict(),
            "optimizer": optimizer.state_dict(),
            "report": last_report,
            "reports": reports,
            "peaks": peaks(),
            "bad_samples": bad_samples,
            **more,
        }
        return {"checkpoint": str(save_checkpoint(trainer.output, done, content, keep=trainer.keep_checkpoints))}

    def depart(done: int, mean_loss: tuple[float, int]) -> NoReturn:
        where = save(done, batches.bad_samples.state(world, device), unreported=True, mean_loss=mean_loss)
        report({"step": done} | where)
        raise LeftError(
            f"asked to leave after step {done}; resume from {where.get('checkpoint', 'the checkpoint of rank 0')}"
        )

    # What a run that left had trained and not yet reported is reported first.
    for step in range(start - unreported, trainer.steps):
        if step >= start:
            warm = step >= start + COUNTED_STEPS
            # A network is compiled in the first step whose tensors are not counted.
            timed = step >= start + COUNTED_STEPS + trainer.compile
            with clock.running(images=trainer.batch_size if timed else 0):
                batch = next(samples)
                torch.manual_seed(_step_seed(trainer.seed, step, rank))
                set_learning_rate(optimizer, learning_rate_factor(step, trainer.steps, config.optimizer))
                with contextlib.nullcontext() if warm and device.type == "cpu" else peak.step(*batch):
                    mean_loss.add(training_step(config, model, optimizer, *batch, autocast=autocast, world=world))
            bar.update()
        done = step + 1
        validates = done == trainer.steps or (trainer.validate_every > 0 and done % trainer.validate_every == 0)
        reporting = validates or done % trainer.report_every == 0
        if reporting:
            mean_loss.share(world)
        if leave is not None and (world == 1 or reporting) and _any(leave(), world, device):
            depart(done, mean_loss.state())
        if not reporting:
            continue

        losses = mean_loss.state()
        new_report = {
            "step": done,
            "epoch": done / batches.steps_per_epoch,
            "train/loss": mean_loss.take(done),
            "train/images_per_s": clock.images_per_s(),
            "train/lr": optimizer.param_groups[-1]["lr"],
        }
        bar.set_postfix(loss=f"{new_report['train/loss']:.3f}")
        if validates:
            whole = validation if leave is None or world > 1 else _until(leave, validation)
            try:
                metrics = evaluate(segmenter, whole, autocast=autocast, peak=val_peak).compute()
            except _LeaveError:
                depart(done, losses)
            new_report |= {
                "val/miou": metrics["miou"],
                "val/pixel_accuracy": metrics["pixel_accuracy"],
                "val/iou_per_class": metrics["iou_per_class"].tolist(),
                "peak_memory_kind": peak.kind,
                **peaks(),
            }
            bad_samples = batches.bad_samples.state(world, device)
            if config.data.max_bad_samples:
                texts = texts_of(bad_samples)
                new_report |= {"train/bad_samples": len(texts), "bad_samples": texts}
            last_report = new_report
        reports.append({name: value for name, value in new_report.items() if isinstance(value, int | float)})
        written = save(done, bad_samples) if validates else {}
        report(new_report | written)
    bar.close()
    return last_report | written


def _group() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _step_seed(seed: int, step: int, rank: int) -> int:
    # Odd multipliers keep (seed, step, rank) apart; torch mixes the bits.
    return (seed * 1_000_003 + step) * 10_007 + rank


def _any(value: bool, world: int, device: torch.device) -> bool:
    """Whether the value is true for any worker of the group."""
    if world == 1:
        return value
    flag = torch.tensor(float(value), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag)


class _LeaveError(Exception):
    """Validation was broken off."""


def _until(leave: Callable[[], bool], batches: Iterable[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if leave():
            raise _LeaveError
        yield batch


def _load(path: Path | str) -> dict[str, Any] | None:
    return load_checkpoint(path) if str(path).partition("?")[0].endswith(".pt") else load_newest(path)


def _check_same_step(start: int, world: int, device: torch.device) -> None:
    """Workers that resume from different checkpoints, one of them unable to read the newest, must not train together."""
    if world > 1:
        steps = torch.tensor([start, -start], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MAX)
        if steps[0] != -steps[1]:
            raise RuntimeError(f"workers resume from different steps, this one from {start}; start the run again")


def _check_same_run(config: Config, stored: dict[str, Any]) -> None:
    changes = differences(flatten(config), stored)
    if changes:
        raise ValueError(
            f"the checkpoint is of another run ({changes}); resume with its settings, or start anew in another trainer.output"
        )
