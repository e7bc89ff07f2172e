"""Says what a run would train and how much memory it needs, without a step and without writing anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from kiloseg.config import Config
from kiloseg.data.class_weights import class_weights
from kiloseg.data.classes import count_classes, record_classes
from kiloseg.data.description import read_info
from kiloseg.data.labeled import require_labeled
from kiloseg.data.reading.loader import TrainBatches, batch_shapes, validation_batches
from kiloseg.memory import plan, plan_evaluation
from kiloseg.models import build_segmenter
from kiloseg.overrides import differences, flatten, override, with_sizes
from kiloseg.training.checkpoint import load_newest
from kiloseg.training.initial import initial_state, take_over
from kiloseg.training.rehearsal import rehearse, shapes_to_try
from kiloseg.tuning.single_run import check_unused


def dry_run(config: Config, *, resume: bool) -> str:
    """Checks a run as training does before its first step, and describes it.

    Args:
        config: the run, with absolute paths.
        resume: whether it would continue from the newest checkpoint in `trainer.output`.

    Returns:
        A few lines: data, network, weights, schedule, validation, memory and place of checkpoints.

    Raises:
        ValueError: training would refuse the run too.
    """
    data, trainer = config.data, config.trainer
    output = Path(trainer.output).resolve()
    info = read_info(data.path)
    num_classes = count_classes(data, info)
    config = with_sizes(config, num_classes)
    require_labeled(data, info)
    step = _first_step(config, output, resume=resume)
    # Without loader processes, which would take shared memory.
    alone = dataclasses.replace(data, loader_workers=0)
    steps_per_epoch = TrainBatches(alone, info, batch_size=trainer.batch_size, seed=trainer.seed).steps_per_epoch
    samples = {split: validation_batches(data, info, split=split).samples for split in data.val_splits}
    shapes = {split: batch_shapes(data, info, split) for split in data.val_splits}
    tried = shapes_to_try(sorted({shape for found in shapes.values() for shape in found}))
    rehearse(config, num_classes, world=1, validation=tried)
    weights = class_weights(config.loss.class_weights, data, info)
    segmenter = build_segmenter(override(config, {"model.weights": "none"}), num_classes)
    segmenter.head.weigh_classes(None if weights is None else torch.from_numpy(weights))
    stored = None if resume and step else initial_state(config.model.weights)
    origin = config.model.weights if stored is None else take_over(segmenter, stored, record_classes(data))
    parameters = sum(parameter.numel() for parameter in segmenter.parameters())
    every = trainer.validate_every or trainer.steps
    validations = -(-trainer.steps // every)
    lines = [
        f"data: {info.name} in {data.path}, {num_classes:,} classes, {info.num_samples('train'):,} training samples",
        f"network: {config.model.arch} over {config.model.backbone}, head {config.model.head}, "
        f"{parameters / 1e6:.1f} million weights",
        f"weights: {origin}",
        f"class weights: {config.loss.class_weights}"
        + ("" if weights is None else f", from {weights.min():.3g} to {weights.max():.3g}"),
        f"training: steps {step + 1:,} to {trainer.steps:,} of {trainer.batch_size} crops of {data.crop} px, "
        f"{trainer.steps / steps_per_epoch:.2f} epochs of {steps_per_epoch:,} steps",
        f"validation: {validations:,} times on "
        + ", ".join(f"{number:,} samples of {split}" for split, number in samples.items()),
        f"planned memory of a training step: {plan(config):.3f} GiB",
        *_planned_validation(config, [shape for found in shapes.values() for shape in found]),
        f"checkpoints: {output}, the {trainer.keep_checkpoints} newest of about {_checkpoint_gib(parameters):.3f} GiB",
        "nothing was trained and nothing was written",
    ]
    return "\n".join(lines)


def _first_step(config: Config, output: Path, *, resume: bool) -> int:
    """Returns the step from which the run would continue, 0 for a new one, and refuses what training would refuse."""
    if not resume:
        check_unused(output)
        return 0
    state = load_newest(output)
    if state is None:
        return 0
    changes = differences(flatten(config), state["config"])
    if changes:
        raise ValueError(f"--resume: the checkpoint is of another run ({changes}); resume with its settings")
    return int(state["step"])


def _planned_validation(config: Config, shapes: list[tuple[int, int, int]]) -> list[str]:
    if not shapes:
        return ["planned memory of a validation batch: unknown, since there is no index that has the sizes of images"]
    images, height, width = max(shapes, key=lambda shape: shape[0] * shape[1] * shape[2])
    batch = override(config, {"data.val_batch_size": images})
    gib = plan_evaluation(batch, size=(height, width))
    return [f"planned memory of the largest validation batch, {images} images of {height} x {width}: {gib:.3f} GiB"]


def _checkpoint_gib(parameters: int) -> float:
    """Returns the size of a checkpoint: weights and up to two numbers of the optimizer for each, of 4 bytes."""
    return 3 * 4 * parameters / 2**30
