"""Prediction at full resolution beside dense logits, and the memory of a large image.

    python benchmarks/predict.py                  time, memory and labels of both ways
    python benchmarks/predict.py --large 4000 6000 --classes 100000                   the memory of an image

The first compares what follows the network: the nearest class of each pixel from embeddings at stride 4, and dense logits at
stride 4 that are upsampled and argmaxed with the classes of a pixel side by side. The layer that makes the logits is not
counted. Times are CPU seconds of this process, in turn; the extra memory of each is the growth of the peak resident memory in a
process of its own. Labels are compared with brute force over embeddings at full resolution, except where two classes are equally
near up to rounding.

The second predicts an image of noise and writes all of its files, in a process of its own; what is reported is the growth of the
peak resident memory from the loaded model on.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from kiloseg.config import Config
from kiloseg.losses.dense import upsampled_logits
from kiloseg.models import nearest_class

STRIDE = 4
TIE = 1e-5
"""The difference of cosines below which two classes count as equally near."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compares ways to predict."""

    classes: int = 1284
    """The number of classes."""
    dim: int = 128
    """The embedding dimension."""
    size: int = 512
    """The side of the image."""
    rounds: int = 5
    """The number of rounds, each of both ways."""
    large: tuple[int, int] | None = None
    """The height and width of a large image, whose memory is measured instead."""
    arch: str = "fpn"
    """The architecture for the large image."""
    backbone: str = "tf_efficientnet_lite0"
    """The backbone for the large image."""


def by_embeddings(pixels_BDhw: Tensor, table_CD: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the nearest class of every pixel."""
    return nearest_class(pixels_BDhw, table_CD, size=size)


def by_logits(logits_BChw: Tensor, _: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the class with the highest upsampled logit of every pixel, as the dense head does."""
    return upsampled_logits(logits_BChw, size).argmax(1)


WAYS: dict[str, Callable[[Tensor, Tensor, tuple[int, int]], Tensor]] = {"nearest": by_embeddings, "dense": by_logits}


def inputs(arguments: Arguments, way: str) -> tuple[Tensor, Tensor]:
    """Returns the outputs of a network, and a class table."""
    torch.manual_seed(0)
    channels = arguments.dim if way == "nearest" else arguments.classes
    side = arguments.size // STRIDE
    return torch.randn(1, channels, side, side), torch.randn(arguments.classes, arguments.dim)


def peak_mib(*, reset: bool = False) -> float:
    """Returns the peak resident memory of this process, in MiB, since it was last reset; a reset makes it what is resident now.

    Importing torch reaches a peak of its own, and getrusage counts that of the parent process too.
    """
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def extra_mib(arguments: Arguments, way: str) -> float:
    """Returns by how much one prediction raises the peak memory of this process, in MiB."""
    outputs, table_CD = inputs(arguments, way)
    WAYS[way](outputs[..., :8, :8], table_CD, (32, 32))  # loads what the first call loads
    before = peak_mib(reset=True)
    WAYS[way](outputs, table_CD, (arguments.size, arguments.size))
    return peak_mib() - before


def alone(function: Callable[..., Any], *words: Any) -> Any:
    """Returns what a function returns in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, words)


def compare(arguments: Arguments) -> None:
    """Prints time, memory and agreement."""
    size = (arguments.size, arguments.size)
    prepared = {way: inputs(arguments, way) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds + 1):
        for way, predict in WAYS.items():
            start = time.process_time()
            predict(*prepared[way], size)
            seconds[way].append(time.process_time() - start)
    median = {way: statistics.median(found[1:]) for way, found in seconds.items()}
    memory = {way: alone(extra_mib, arguments, way) for way in WAYS}
    print(
        f"{arguments.classes:,} classes, D = {arguments.dim}, {size[0]} x {size[1]}, {torch.get_num_threads()} threads"
    )
    for way in WAYS:
        print(f"{way:<8} {1000 * median[way]:9.1f} ms   {memory[way]:8.1f} MiB extra")
    print(
        f"dense / nearest: {median['dense'] / median['nearest']:.1f} x time, {memory['dense'] / memory['nearest']:.1f} x memory"
    )
    wrong, ties = differing(*prepared["nearest"], size)
    print(f"labels that differ from brute force: {wrong}, besides {ties} where two classes are within {TIE:g}")


def differing(pixels_BDhw: Tensor, table_CD: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """Returns how many labels differ from brute force, and how many more do where two classes are equally near."""
    labels_P = nearest_class(pixels_BDhw, table_CD, size=size).flatten()
    full = F.interpolate(pixels_BDhw, size=size, mode="bilinear", align_corners=False)
    pixels_PD = F.normalize(full, dim=1).permute(0, 2, 3, 1).reshape(-1, table_CD.shape[1])
    rows_CD = F.normalize(table_CD, dim=1)
    wrong = ties = 0
    for mine_p, pixels_pD in zip(labels_P.split(4096), pixels_PD.split(4096), strict=True):
        cosines_pC = pixels_pD @ rows_CD.T
        best_p = cosines_pC.max(1).values
        missing_p = best_p - cosines_pC.gather(1, mine_p[:, None])[:, 0]
        other_p = mine_p != cosines_pC.argmax(1)
        wrong += int((other_p & (missing_p > TIE)).sum())
        ties += int((other_p & (missing_p <= TIE)).sum())
    return wrong, ties


def large_image(arguments: Arguments, num_classes: int) -> tuple[float, float, float]:
    """Predicts and saves a large image; returns the extra peak memory of each in MiB, and the CPU seconds."""
    from kiloseg.config import Model
    from kiloseg.inference.classes import ModelClasses
    from kiloseg.inference.model import TrainedModel
    from kiloseg.models import Segmenter

    torch.set_num_threads(1)
    assert arguments.large is not None
    torch.manual_seed(0)
    config = Config(model=Model(arch=arguments.arch, backbone=arguments.backbone, embed_dim=arguments.dim))
    segmenter = Segmenter(config.model, num_classes).eval()
    classes = ModelClasses(
        ids=np.arange(num_classes) % 65535, names=[f"class {number}" for number in range(num_classes)]
    )
    model = TrainedModel(segmenter=segmenter, config=config, classes=classes, source="benchmark")
    height, width = arguments.large
    model(np.zeros((64, 64, 3), dtype=np.uint8))
    before, start = peak_mib(reset=True), time.process_time()
    small = np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    image = small.repeat(16, 0).repeat(16, 1)[:height, :width]
    result = model(image)
    predicted = peak_mib() - before
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder), "image", confidence=True)
    return predicted, peak_mib() - before, time.process_time() - start


def main(arguments: Arguments) -> None:
    """Runs one of the two."""
    if arguments.large is None:
        compare(arguments)
        return
    predicted, saved, seconds = alone(large_image, arguments, arguments.classes)
    print(
        f"{arguments.large[0]} x {arguments.large[1]}, {arguments.classes:,} classes: {predicted:,.0f} MiB beyond the model, "
        f"{saved:,.0f} MiB with files; {seconds:.0f} CPU s"
    )


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
