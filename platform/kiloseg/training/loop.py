"""Runs the training loop, `train(config, report)`. It needs only torch; the caller decides what happens to a report.

Order of samples, augmentation and sampled negatives are functions of (seed, step, rank), so a run that is resumed from a
checkpoint continues exactly as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from kiloseg.config import Config
from kiloseg.data.classes import count_classes
from kiloseg.data.description import read_info
from kiloseg.data.labeled import require_labeled
from kiloseg.data.reading.bad_samples import texts_of
from kiloseg.data.reading.batches import Batch
from kiloseg.data.reading.loader import TrainBatches, batch_shapes, validation_batches
from kiloseg.overrides import with_sizes
from kiloseg.storage.commands import shell
from kiloseg.storage.errors import DataError
from kiloseg.training.checkpoint import load_checkpoint, load_newest
from kiloseg.training.evaluation import evaluate
from kiloseg.training.meters import Clock
from kiloseg.training.meters import NonFiniteLossError as NonFiniteLossError
from kiloseg.training.optimizer import learning_rate_factor, set_learning_rate
from kiloseg.training.precision import autocast_of
from kiloseg.training.preemption import PreemptedError as PreemptedError
from kiloseg.training.rehearsal import naming_shapes, rehearse, shapes_to_try, training_shapes
from kiloseg.training.report import Report, Validation
from kiloseg.training.state import TrainState
from kiloseg.training.step import training_step
from kiloseg.training.workers import Workers

COUNTED_STEPS = 2
"""Number of steps whose live tensors are counted on a CPU. The second step already has the optimizer's state."""


def train(
    config: Config,
    report: Callable[[Report], object],
    *,
    resume: Path | str | dict[str, Any] | None = None,
    preempted: Callable[[], bool] | None = None,
) -> Report:
    """Runs `config` to its end in this process or, if torch.distributed is initialized, in all processes of its group.

    Args:
        config: the run; `data.path` must hold a data set.
        report: called with a Report every `trainer.report_every` steps and at every validation, in every rank. The Report is
            also a mapping with the names used in MLflow, such as report["val/miou"].
        resume: the path or URL of a checkpoint file or of a folder of checkpoints (the newest complete one is used; an empty
            folder means a fresh start), or the content of a checkpoint, whose tensors are then removed from it.
        preempted: called after every step and before every validation batch, or with several workers only at reports. When
            it returns True (see `kiloseg.training.preemption`), a checkpoint is written, from which the run can continue
            exactly, and training ends with PreemptedError.

    Returns:
        The report of the last validation.

    Raises:
        ValueError: the config, the data set (DataError) or the checkpoint cannot be used.
        NonFiniteLossError: the loss is NaN or infinite; earlier checkpoints are kept.
        PreemptedError: `preempted` returned True.
    """
    workers = Workers.of_process()
    trainer = config.trainer
    info = read_info(config.data.path)
    num_classes = count_classes(config.data, info)
    config = with_sizes(config, num_classes)
    require_labeled(config.data, info)
    rank, world = workers.rank, workers.world_size
    batches = TrainBatches(config.data, info, batch_size=trainer.batch_size, seed=trainer.seed, rank=rank, world=world)
    validation = {
        split: validation_batches(config.data, info, split=split, rank=rank, world=world)
        for split in config.data.val_splits
    }

    shapes = {shape for split in config.data.val_splits for shape in batch_shapes(config.data, info, split)}
    rehearse(config, num_classes, world=world, validation=shapes_to_try(sorted(shapes)))
    stored = _load(resume) if isinstance(resume, Path | str) else resume
    state = TrainState(config, num_classes, workers, batches.bad_samples, resumes=stored is not None)
    if stored is not None:
        state.load(stored)
    workers.require_same_step(state.step)
    model = workers.parallel(state.segmenter).train()
    steps = _Steps(state, model, batches)
    with contextlib.closing(batches), _progress(state) as bar:
        # Steps that a run had trained but not yet reported when it was interrupted are reported first.
        while state.unreported or (state.step < trainer.steps and not state.patience_is_over):
            if not state.unreported:
                steps.take()
                bar.update()
            if state.report_due:
                state.mean_loss.average(workers.world_size)
            alone = workers.world_size == 1
            if preempted is not None and (alone or state.report_due) and workers.any(preempted()):
                raise PreemptedError(state.step, state.save())
            if not state.report_due:
                state.unreported = False
                continue
            new = steps.report()
            bar.set_postfix(loss=f"{new.loss:.3f}")
            if state.validation_due:
                # Validation needs memory and data of its own: whatever ends it, even SIGKILL, what was trained is kept.
                checkpoint = state.save()
                try:
                    found = _validate(state, validation, stop=preempted if alone else None)
                except BaseException as error:
                    if checkpoint is not None:
                        error.add_note(f"what was trained before this validation is kept in {checkpoint}")
                    raise
                if found is None:
                    raise PreemptedError(state.step, checkpoint)
                new = dataclasses.replace(new, validation=found)
            report(state.add_report(new))
    assert state.last_validated is not None, "every run ends with a validation"
    return state.last_validated


class _Steps:
    """Takes training steps from the current position of a run and measures them."""

    def __init__(self, state: TrainState, model: nn.Module, batches: TrainBatches) -> None:
        self._state = state
        self._model = model
        self._batches = batches.from_step(state.step)
        self._steps_per_epoch = batches.steps_per_epoch
        self._clock = Clock(state.workers.device)
        self._taken = 0
        self._labeled = False

    def take(self) -> None:
        """Takes the next step."""
        state, config, workers = self._state, self._state.config, self._state.workers
        measured = self._taken < COUNTED_STEPS or workers.device.type == "cuda"
        # The network is compiled in the first step whose tensors are not counted.
        timed = self._taken >= COUNTED_STEPS + config.trainer.compile
        with self._clock.running(images=config.trainer.batch_size if timed else 0):
            batch = next(self._batches)
            # Checked until a label is found, which is almost always in the first batch.
            self._labeled = self._labeled or bool((batch.labels >= 0).any())
            torch.manual_seed(_step_seed(config.trainer.seed, state.step, workers.rank))
            factor = learning_rate_factor(state.step, config.trainer.steps, config.optimizer)
            set_learning_rate(state.optimizer, factor)
            autocast = autocast_of(config.trainer.precision, workers.device)
            with (
                naming_shapes(config, training_shapes(config, workers.world_size)),
                state.peaks.training.step(*batch) if measured else contextlib.nullcontext(),
            ):
                loss = training_step(
                    config, self._model, state.optimizer, *batch, autocast=autocast, world=workers.world_size
                )
            state.mean_loss.add(loss)
        self._taken += 1
        state.step += 1
        state.unreported = True

    def report(self) -> Report:
        """Returns the measurements of the steps since the last report.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite.
            DataError: no crop of a whole epoch, or of a whole run, had a labeled pixel.
        """
        whole = self._taken >= self._steps_per_epoch or 0 < self._taken == self._state.config.trainer.steps
        if whole and not self._state.workers.any(self._labeled):
            path = self._state.config.data.path
            raise DataError(
                f"{path}: no pixel of the {self._taken} training batches so far has a label, so that nothing is learned; check the "
                f"masks ({shell('kiloseg', 'verify', path)}) and data.num_classes"
            )
        return Report(
            step=self._state.step,
            epoch=self._state.step / self._steps_per_epoch,
            loss=self._state.mean_loss.value(self._state.step),
            images_per_s=self._clock.images_per_s(),
            lr=self._state.optimizer.param_groups[-1]["lr"],
        )


def _validate(
    state: TrainState, splits: Mapping[str, Iterable[Batch]], *, stop: Callable[[], bool] | None
) -> Validation | None:
    """Validates the model on every split; returns None if `stop` returned True before the end."""
    autocast = autocast_of(state.config.trainer.precision, state.workers.device)
    metrics: dict[str, dict[str, Any]] = {}
    for split, batches in splits.items():
        peak = state.peaks.prediction if split == "val" else None
        with naming_shapes(
            state.config, f"whole images of split {split!r}, data.val_batch_size = {state.config.data.val_batch_size}"
        ):
            counts = evaluate(state.segmenter, batches, autocast=autocast, peak=peak, stop=stop)
        if counts is None:
            return None
        metrics[split] = counts.compute()
    bad_samples = None
    if state.config.data.max_bad_samples:
        bad_samples = texts_of(state.bad_samples.state(state.workers.world_size, state.workers.device))
    val = metrics.pop("val")
    return Validation(
        miou=val["miou"],
        pixel_accuracy=val["pixel_accuracy"],
        iou_per_class=val["iou_per_class"].tolist(),
        other_splits={
            f"{split}/{name}": found[name] for split, found in metrics.items() for name in ("miou", "pixel_accuracy")
        },
        peaks=state.peaks.report(),
        num_bad_samples=None if bad_samples is None else len(bad_samples),
        bad_samples=bad_samples,
    )


def _step_seed(seed: int, step: int, rank: int) -> int:
    # Odd multipliers keep (seed, step, rank) apart; torch mixes the bits.
    return (seed * 1_000_003 + step) * 10_007 + rank


def _load(path: Path | str) -> dict[str, Any] | None:
    return load_checkpoint(path) if str(path).partition("?")[0].endswith(".pt") else load_newest(path)


def _progress(state: TrainState) -> tqdm[Any]:
    trainer = state.config.trainer
    if state.origin and trainer.progress and state.workers.rank == 0:
        tqdm.write(state.origin)
    # None shows the bar on terminals only.
    disable = None if trainer.progress and state.workers.rank == 0 else True
    return tqdm(total=trainer.steps, initial=state.step, desc="train", disable=disable)
