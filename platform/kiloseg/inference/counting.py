"""Runs a model over the validation images of a data set and counts, in this process or in several.

Shapes: H W pixels, h w feature cells, N channels of the network's outputs.
"""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing.connection
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor

from kiloseg.config import Data
from kiloseg.data.description import DatasetInfo
from kiloseg.data.reading.loader import validation_batches
from kiloseg.inference.counts import Counts
from kiloseg.inference.groups import levels_of
from kiloseg.inference.matching import Matching
from kiloseg.inference.model import TrainedModel
from kiloseg.inference.tiling import blended, check_tiles, row_bands
from kiloseg.inference.views import averaged_outputs, check_scales
from kiloseg.models.heads import Candidates
from kiloseg.storage.errors import DataError
from kiloseg.training.precision import autocast_of

BAND_PIXELS = 2**17
"""Target number of pixels whose best classes are in memory at the same time."""
BAND_VALUES = 2**25
"""Target number of logits in memory at the same time, for heads that compute those of all classes."""
BEST = 5
"""Classes of a pixel of which one must be right for top-5 accuracy."""
SHOWN = 6
"""Number of samples that are kept to be shown."""
SHOWN_SIDE = 320
"""Longest side of a sample that is shown, in pixels; larger ones are thinned out."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """How the network looks at an image."""

    tile: int | None = None
    """Side in pixels of a sliding window, a multiple of 32; None: the whole image at once."""
    overlap: int = 0
    """Pixels by which windows overlap, a multiple of 32 below `tile`."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the image's sides whose outputs are averaged."""
    flip: bool = False
    """Whether the outputs of the mirror image are averaged too."""

    def __post_init__(self) -> None:
        check_scales(self.scales)
        if self.tile is not None:
            check_tiles(self.tile, self.overlap)
        elif self.overlap:
            raise ValueError(f"overlap = {self.overlap} without a tile: expected 0, or a tile")


class Sample(NamedTuple):
    """An image that is shown: uint8 (H, W, 3), its labels (H, W) with -1 for ignore, and predictions (H, W)."""

    image: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is counted."""

    data: Data
    """Settings of the data set, with all of its classes and batches of one image."""
    info: DatasetInfo
    matching: Matching
    views: Views


def count(
    model: TrainedModel, task: Task, *, workers: int, on_image: Callable[[], object]
) -> tuple[Counts, list[Sample]]:
    """Counts over a data set, in this process or, with more than one worker, in processes of their own.

    Args:
        model: the model.
        task: what to count.
        workers: number of processes; on a machine with several GPUs they take turns at them.
        on_image: called after every image.

    Raises:
        DataError: the data set is damaged.
        RuntimeError: a process ended without a result, for example because memory ran out.
    """
    if workers == 1:
        return count_share(model, task, 0, 1, on_image)
    context = torch.multiprocessing.get_context("spawn")
    segmenter = model.segmenter if model.device.type == "cpu" else copy.deepcopy(model.segmenter).cpu()
    on_cpu = dataclasses.replace(model, segmenter=segmenter, autocast=None)
    threads = max(torch.get_num_threads() // workers, 1)
    total, shown = _counts(model, "cpu"), []
    ends, processes = {}, []
    try:
        for rank in range(workers):
            receiving, sending = context.Pipe(duplex=False)
            words = (on_cpu, task, rank, workers, threads, _device(model, rank), model.autocast is not None, sending)
            processes.append(context.Process(target=_work, args=words))
            processes[-1].start()
            sending.close()
            ends[receiving] = rank
        while ends:
            for ready in multiprocessing.connection.wait(list(ends)):
                assert isinstance(ready, Connection)
                rank = ends[ready]
                try:
                    kind, content = ready.recv()
                except EOFError:
                    processes[rank].join()
                    raise RuntimeError(
                        f"worker {rank} of the evaluation ended with exit code {processes[rank].exitcode} and no result; if "
                        "memory ran out, take fewer workers or a smaller tile"
                    ) from None
                if kind == "image":
                    on_image()
                    continue
                del ends[ready]
                if kind == "error":
                    raise DataError(content)
                total.merge(content[0])
                shown += content[1]
    finally:
        for process in processes:
            if ends:
                process.terminate()
            process.join()
    return total, shown


def _counts(model: TrainedModel, device: torch.device | str) -> Counts:
    classes = model.classes
    return Counts(len(classes), levels_of(classes), background=classes.background, device=device)


def _device(model: TrainedModel, rank: int) -> str:
    return f"cuda:{rank % torch.cuda.device_count()}" if model.device.type == "cuda" else str(model.device)


def _work(
    model: TrainedModel,
    task: Task,
    rank: int,
    workers: int,
    threads: int,
    device: str,
    mixed: bool,
    sending: Connection,
) -> None:
    torch.set_num_threads(threads)
    autocast = autocast_of("bf16", torch.device(device)) if mixed else None
    placed = dataclasses.replace(model, segmenter=model.segmenter.to(device), autocast=autocast)
    try:
        counts, shown = count_share(placed, task, rank, workers, lambda: sending.send(("image", None)))
    except (ValueError, ConnectionError) as error:
        sending.send(("error", str(error)))
        return
    sending.send(("counts", (counts.state(), shown)))


@torch.no_grad()
def count_share(
    model: TrainedModel, task: Task, rank: int, workers: int, on_image: Callable[[], object]
) -> tuple[Counts, list[Sample]]:
    """Counts over the share of one worker; the first worker also keeps its first samples."""
    counts = _counts(model, model.device)
    label_of = torch.from_numpy(task.matching.label_of)
    data = dataclasses.replace(task.data, loader_workers=task.data.loader_workers // workers)
    head = model.segmenter.head
    outputs_of = averaged_outputs(
        model.outputs, scales=task.views.scales, flip=task.views.flip, unit_vectors=head.table is not None
    )
    shown: list[Sample] = []
    for images, ids in validation_batches(data, task.info, rank=rank, world=workers):
        labels_HW = label_of[ids[0]].to(model.device)
        pixels_HW3 = images[0].permute(1, 2, 0).numpy()
        predicted_HW = torch.empty_like(labels_HW)
        for rows, found in _candidates(model, outputs_of, pixels_HW3, task.views):
            counts.update(found, labels_HW[None, rows])
            predicted_HW[rows] = found.labels[0, 0]
        counts.update_image(predicted_HW, labels_HW)
        if rank == 0 and len(shown) < SHOWN:
            step = -(-max(labels_HW.shape) // SHOWN_SIDE)
            labels, predicted = (each[::step, ::step].cpu().numpy() for each in (labels_HW.clamp(min=-1), predicted_HW))
            shown.append(Sample(pixels_HW3[::step, ::step].copy(), labels, predicted))
        on_image()
    return counts, shown


def _candidates(
    model: TrainedModel, outputs_of: Callable[[Tensor], Tensor], pixels_HW3: np.ndarray, views: Views
) -> Iterator[tuple[slice, Candidates]]:
    """Yields bands of rows of an image whose sides are multiples of 32, and the best classes of their pixels."""
    head = model.segmenter.head
    number = min(BEST, len(model.classes)) if head.ranks else 1
    tile = views.tile or max(pixels_HW3.shape[:2])
    row = 0
    for outputs, cells, stride in blended(outputs_of, pixels_HW3, tile, views.overlap):
        # A head without a table upsamples all of its channels.
        most = BAND_PIXELS if head.table is not None else min(BAND_PIXELS, BAND_VALUES // outputs.shape[1])
        for part, taken, top in row_bands(outputs, cells, stride, most):
            found = head.candidates(part, (part.shape[2] * stride, part.shape[3] * stride), number)
            rows = slice(row + top, row + top + taken.stop - taken.start)
            yield rows, Candidates(found.labels[:, :, taken], found.logits[:, :, taken], found.familiarity[:, taken])
        row += (cells.stop - cells.start) * stride
