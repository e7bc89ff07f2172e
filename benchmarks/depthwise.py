"""Measures a training step on a CPU with the gradients of depthwise convolutions by kiloseg's kernel and by torch alone.

    python benchmarks/depthwise.py
    python benchmarks/depthwise.py --backbones convnext_tiny mobilenetv3_large_100 --precisions bf16 --batch 8 --size 128

Every round takes a step of each network in turn; ratios are medians of those within a round, times medians of the processor time
of a step. The network is that of preset emoji over the backbone, without pretrained weights. "torch" has torch's own gradients,
with the encoder in float32 in bf16 too, as training has it on machines without a compiler; "torch, all bf16" has the encoder in
bfloat16.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import tyro

from kiloseg.config import Config, Precision
from kiloseg.models import Segmenter, build_segmenter
from kiloseg.models.depthwise import InFloat32
from kiloseg.overrides import head_overrides, override
from kiloseg.presets import PRESETS
from kiloseg.training.optimizer import build_optimizer
from kiloseg.training.precision import autocast_of
from kiloseg.training.step import training_step


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures a training step with and without fast gradients of depthwise convolutions."""

    backbones: tuple[str, ...] = ("tf_efficientnet_lite0", "mobilenetv3_large_100", "convnext_atto")
    """Backbones with depthwise convolutions."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    """The precisions. A CPU without instructions for bfloat16 takes very long with it."""
    classes: int = 1024
    """The number of classes."""
    batch: int = 16
    """The number of images per step."""
    size: int = 64
    """The side of the images in pixels; the preset enlarges them twice."""
    rounds: int = 5
    """The number of rounds."""


def networks(config: Config, classes: int) -> dict[str, Segmenter]:
    """Returns the networks to compare, by name."""
    found = {"kiloseg": build_segmenter(config, classes)}
    names = ["torch"] if config.trainer.precision == "fp32" else ["torch", "torch, all bf16"]
    for name in names:
        segmenter = found[name] = build_segmenter(config, classes)
        for module in segmenter.network.modules():
            vars(module).pop("forward", None)
        if name == "torch":
            segmenter.network.encoder.forward = InFloat32(segmenter.network.encoder)
    return found


def main(arguments: Arguments) -> None:
    """Measures every backbone in every precision and prints a table."""
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, arguments.classes, (arguments.batch, 8, 8), generator=generator)
    labels = labels.repeat_interleave(arguments.size // 8, 1).repeat_interleave(arguments.size // 8, 2)
    print("| backbone | precision | gradients | ms a step | ratio |\n|---|---|---|---:|---:|")
    for backbone in arguments.backbones:
        for precision in arguments.precisions:
            settings = head_overrides("embedding:random") | {
                "model.backbone": backbone,
                "model.weights": "none",
                "loss.negatives.count": min(255, arguments.classes - 1),
                "trainer.precision": precision,
                "trainer.channels_last": True,
            }
            config = override(PRESETS["emoji"].config, settings)
            cases = {
                name: (segmenter, build_optimizer(segmenter, config.optimizer))
                for name, segmenter in networks(config, arguments.classes).items()
            }
            times: dict[str, list[float]] = {name: [] for name in cases}
            for number in range(-1, arguments.rounds):  # the first round only warms up
                for name, (segmenter, optimizer) in cases.items():
                    begin = time.process_time()
                    autocast = autocast_of(precision, torch.device("cpu"))
                    training_step(config, segmenter, optimizer, images, labels, autocast=autocast)
                    if number >= 0:
                        times[name].append(1000 * (time.process_time() - begin))
            for name, taken in times.items():
                ratio = statistics.median(one / other for one, other in zip(taken, times["torch"], strict=True))
                print(
                    f"| {backbone} | {precision} | {name} | {statistics.median(taken):,.0f} | {ratio:.2f} |", flush=True
                )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
