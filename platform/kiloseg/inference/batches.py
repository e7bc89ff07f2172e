"""Predicts many images: files are read ahead in threads, and small images of equal size go through the network together."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from kiloseg.inference.answering import Answer
from kiloseg.inference.images import as_pixels
from kiloseg.inference.model import OVERLAP, TILE, TrainedModel
from kiloseg.inference.result import Result
from kiloseg.inference.tiling import padded_size, padded_tensor

READERS = 2
"""Threads that read and decode images; Pillow decodes without holding Python's lock."""


def predict_many(
    model: TrainedModel,
    images: Iterable[str],
    *,
    batch_size: int = 1,
    tile: int = TILE,
    overlap: int = OVERLAP,
    answer: Answer | None = None,
) -> Iterator[tuple[str, Result | ValueError]]:
    """Predicts images in their order, with the same results as one by one up to rounding.

    Memory holds two batches of decoded images, however many there are.

    Args:
        model: the model.
        images: paths or URLs.
        batch_size: the most images that go through the network together; only neighbors do that have the same size after
            padding and fit into one tile.
        tile, overlap, answer: as `TrainedModel.__call__` takes them.

    Yields:
        Each image with its result, or with the error of an image that cannot be read.

    Raises:
        ValueError: `batch_size` is less than 1; `tile` or `overlap` is impossible.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}: expected at least 1 image")
    alike: list[tuple[str, np.ndarray]] = []
    for image, pixels in _read_ahead(images, 2 * batch_size):
        size = None if isinstance(pixels, ValueError) else padded_size(pixels)
        small = size is not None and max(size) <= tile
        if alike and not (small and len(alike) < batch_size and size == padded_size(alike[0][1])):
            yield from _predict_batch(model, alike, tile, overlap, answer)
            alike = []
        if isinstance(pixels, ValueError):
            yield image, pixels
        elif small:
            alike.append((image, pixels))
        else:
            yield from _predict_batch(model, [(image, pixels)], tile, overlap, answer)
    if alike:
        yield from _predict_batch(model, alike, tile, overlap, answer)


def _read_ahead(images: Iterable[str], count: int) -> Iterator[tuple[str, np.ndarray | ValueError]]:
    remaining = iter(images)
    with ThreadPoolExecutor(READERS, "read image") as pool:
        waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
        try:
            while True:
                for image in itertools.islice(remaining, count - len(waiting)):
                    waiting.append((image, pool.submit(as_pixels, image)))
                if not waiting:
                    return
                image, reading = waiting.popleft()
                try:
                    pixels: np.ndarray | ValueError = reading.result()
                except ValueError as error:
                    pixels = error
                yield image, pixels
        finally:
            pool.shutdown(cancel_futures=True)


def _predict_batch(
    model: TrainedModel, alike: list[tuple[str, np.ndarray]], tile: int, overlap: int, answer: Answer | None
) -> Iterator[tuple[str, Result]]:
    outputs_BNhw = None
    if len(alike) > 1:
        outputs_BNhw = model.outputs(torch.stack([padded_tensor(pixels) for _, pixels in alike]))
    for number, (image, pixels) in enumerate(alike):
        outputs = None if outputs_BNhw is None else outputs_BNhw[number : number + 1]
        yield image, model.result(pixels, image, outputs_1Nhw=outputs, tile=tile, overlap=overlap, answer=answer)
