"""Holds a model's prediction for an image, and writes the files that show it."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kiloseg.data.codec import encode_mask
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.overlay import draw_overlay
from kiloseg.inference.page import prediction_page
from kiloseg.storage.atomic import write_whole

FORMAT = "kiloseg-prediction-1"


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """All pixels of an image to which a model assigns the same class."""

    label: int
    class_id: int
    """Id of the class in the data set."""
    name: str
    pixels: int
    confidence: float
    """Mean confidence of the pixels, 0.5 to 1, or NaN; see `Result.confidence`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A model's prediction for an image: the class and the confidence of every pixel."""

    labels: np.ndarray
    """Label of every pixel: int32 of shape (H, W), 0 to C - 1."""
    confidence: np.ndarray
    """Probability of each pixel's class against the second best only: float16 (H, W), 0.5 to 1; NaN if the head has none."""
    pixels: np.ndarray
    """The image, upright: uint8 of shape (H, W, 3)."""
    classes: ModelClasses
    image: str = ""
    """Path or URL of the image; empty if it was not given as a file."""

    @functools.cached_property
    def regions(self) -> list[Region]:
        """One region for each class that occurs, the largest first."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        sums = np.bincount(self.labels.ravel(), self.confidence.ravel(), minlength=len(self.classes))
        order = np.argsort(-counts, kind="stable")
        return [
            Region(
                label=int(label),
                class_id=int(self.classes.ids[label]),
                name=self.classes.names[label],
                pixels=int(counts[label]),
                confidence=float(sums[label] / counts[label]),
            )
            for label in order[: np.count_nonzero(counts)]
        ]

    @property
    def names(self) -> list[str]:
        """Names of the classes that occur, those with the most pixels first."""
        return [region.name for region in self.regions]

    @property
    def class_ids(self) -> np.ndarray:
        """Id in the data set of every pixel's class: uint16 (H, W), or int64 if ids do not fit."""
        small = self.classes.ids.max(initial=0) <= np.iinfo(np.uint16).max
        return self.classes.ids.astype(np.uint16 if small else np.int64)[self.labels]

    def overlay(self) -> Image.Image:
        """Draws the image with its regions tinted and outlined, and a legend of their names."""
        return draw_overlay(self.pixels, self.labels, self.regions, self.classes.colors)

    def show(self) -> None:
        """Opens the overlay in the system's viewer."""
        self.overlay().show()

    def page(self) -> str:
        """Returns a single HTML file that shows the class name and confidence under the pointer and can hide classes."""
        return prediction_page(self)

    def confidence_map(self) -> Image.Image:
        """Draws the confidences as a gray image of 8 bits: 255 x the confidence, so 128 to 255; 0 where the head has none."""
        gray_HW = np.empty(self.confidence.shape, dtype=np.uint8)
        for row in range(0, len(gray_HW), 256):  # limits how many pixels are floats of 32 bits at once
            part = np.nan_to_num(self.confidence[row : row + 256].astype(np.float32), nan=0.0)
            gray_HW[row : row + 256] = np.round(255 * part)
        return Image.fromarray(gray_HW)

    def save(
        self,
        folder: Path | str,
        name: str = "",
        *,
        page: bool = False,
        confidence: bool = False,
        overwrite: bool = False,
    ) -> list[Path]:
        """Writes NAME.labels.png (class ids, uint16), NAME.overlay.png and, last, NAME.json to a folder on this machine.

        The JSON has one region per class with its name, confidence and run lengths in COCO's format: columns from left to
        right, with counts of pixels outside and inside the region in turn, starting outside.

        Args:
            folder: folder for the files; created if it does not exist.
            name: NAME, which may contain folders; if empty, the name of the image file without its suffix.
            page: whether to write NAME.html too, the page of `page()`.
            confidence: whether to write NAME.confidence.png too, the picture of `confidence_map()`.
            overwrite: whether to replace existing files.

        Returns:
            The paths of the files.

        Raises:
            ValueError: such files exist, the image has no name, or ids do not fit 16 bits.
            OSError: the files cannot be written.
        """
        paths = output_files(Path(folder), name or Path(self.image).stem, page=page, confidence=confidence)
        there = [path for path in paths.values() if path.exists()]
        if there and not overwrite:
            raise ValueError(f"{there[0]} exists; give overwrite=True (--overwrite), or another folder")
        ids_HW = self.class_ids
        if ids_HW.dtype != np.uint16:
            raise ValueError(
                f"class ids up to {self.classes.ids.max():,} do not fit a PNG of 16 bits; use Result.labels"
            )
        makers: dict[str, Callable[[], bytes]] = {
            "labels.png": lambda: encode_mask(ids_HW),
            "overlay.png": lambda: _png(self.overlay()),
            "confidence.png": lambda: _png(self.confidence_map()),
            "html": lambda: self.page().encode(),
            "json": lambda: json.dumps(self.summary()).encode(),
        }
        # Each file is made when the one before it is written, so that a large image's files are not in memory together.
        for kind, path in paths.items():
            write_whole(path, makers[kind]())
        return list(paths.values())

    def summary(self) -> dict[str, Any]:
        """Returns the content of NAME.json."""
        runs = run_lengths(self.labels)
        height, width = self.labels.shape
        return {
            "format": FORMAT,
            "image": self.image,
            "height": height,
            "width": width,
            "data": self.classes.data,
            "regions": [
                {
                    "id": region.class_id,
                    "name": region.name,
                    "pixels": region.pixels,
                    "confidence": None if np.isnan(region.confidence) else round(region.confidence, 4),
                    "segmentation": {"size": [height, width], "counts": runs[region.label]},
                }
                for region in self.regions
            ],
        }


def output_files(folder: Path, name: str, *, page: bool = False, confidence: bool = False) -> dict[str, Path]:
    """Returns the paths of the files that `Result.save` writes, by kind and in order; the last is the JSON.

    Raises:
        ValueError: the name is empty.
    """
    if not name:
        raise ValueError("the image was given as pixels and has no name: give a name for its files")
    kinds = (
        "labels.png",
        "overlay.png",
        *(["confidence.png"] if confidence else []),
        *(["html"] if page else []),
        "json",
    )
    return {kind: folder / f"{name}.{kind}" for kind in kinds}


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def run_lengths(labels_HW: np.ndarray) -> dict[int, list[int]]:
    """Computes, for each label that occurs, COCO's uncompressed run lengths of its mask, in one pass over the pixels."""
    flat = labels_HW.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    ends = np.append(starts[1:], len(flat))
    labels = flat[starts]
    order = np.argsort(labels, kind="stable")
    found, firsts = np.unique(labels[order], return_index=True)
    counts = {}
    for label, runs in zip(found, np.split(order, firsts[1:]), strict=True):
        # Positions where the mask begins and ends in turn; `diff` adds the two ends of the image.
        borders = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        lengths = np.diff(borders, prepend=0, append=len(flat)).tolist()
        counts[int(label)] = lengths if lengths[-1] else lengths[:-1]
    return counts
