"""What a model says of an image, and the files that show it."""

from __future__ import annotations

import functools
import io
import json
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
    """All pixels of an image that a model gives one class."""

    label: int
    class_id: int
    """In the data set."""
    name: str
    pixels: int
    confidence: float
    """Mean over the pixels; see `Result.confidence`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The class of every pixel of an image."""

    labels: np.ndarray
    """int32 (H, W), 0 to C - 1."""
    confidence: np.ndarray
    """float16 (H, W): the probability of the class against the second best alone, 0.5 to 1; NaN for a head without one."""
    pixels: np.ndarray
    """uint8 (H, W, 3): the image, upright."""
    classes: ModelClasses
    image: str = ""
    """Where it comes from."""

    @functools.cached_property
    def regions(self) -> list[Region]:
        """A region for each class that occurs, the largest first."""
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
        """Names of the classes that occur, the largest first."""
        return [region.name for region in self.regions]

    @property
    def class_ids(self) -> np.ndarray:
        """The data set's id of every pixel's class: uint16 (H, W), or int64 where ids are beyond that."""
        small = self.classes.ids.max(initial=0) < np.iinfo(np.uint16).max
        return self.classes.ids.astype(np.uint16 if small else np.int64)[self.labels]

    def overlay(self) -> Image.Image:
        """The image with its regions tinted and outlined, and a legend of their names."""
        return draw_overlay(self.pixels, self.labels, self.regions, self.classes.colors)

    def show(self) -> None:
        """Opens the overlay in the system's viewer."""
        self.overlay().show()

    def page(self) -> str:
        """HTML of one file that shows the name and confidence under the pointer, with classes to switch on and off."""
        return prediction_page(self)

    def save(self, folder: Path | str, name: str = "", *, page: bool = False, overwrite: bool = False) -> list[Path]:
        """Writes NAME.labels.png (class ids, uint16), NAME.overlay.png and, last, NAME.json into a folder of this machine.

        The JSON has a region per class with its name, confidence and run lengths as COCO has them: columns from left to
        right, pixels outside and inside in turn, beginning outside.

        Args:
            folder: made if it is not there.
            name: NAME, which may have folders of its own; the image file's without its suffix if not given.
            page: write NAME.html as well, which is `page`.
            overwrite: take the place of files that are there.

        Returns:
            The files.

        Raises:
            ValueError: there are such files, or the image has no name, or ids are beyond 16 bits.
            OSError: they cannot be written.
        """
        paths = output_files(Path(folder), name or Path(self.image).stem, page=page)
        there = [path for path in paths if path.exists()]
        if there and not overwrite:
            raise ValueError(f"{there[0]} exists; give overwrite=True (--overwrite), or another folder")
        ids_HW = self.class_ids
        if ids_HW.dtype != np.uint16:
            raise ValueError(
                f"class ids up to {self.classes.ids.max():,} do not fit a PNG of 16 bits; use Result.labels"
            )
        picture = io.BytesIO()
        self.overlay().save(picture, "PNG")
        contents = [encode_mask(ids_HW), picture.getvalue(), json.dumps(self.summary()).encode()]
        if page:
            contents.insert(2, self.page().encode())
        for path, content in zip(paths, contents, strict=True):
            write_whole(path, content)
        return paths

    def summary(self) -> dict[str, Any]:
        """What NAME.json holds."""
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


def output_files(folder: Path, name: str, *, page: bool = False) -> list[Path]:
    """The files that `Result.save` writes.

    Raises:
        ValueError: no name.
    """
    if not name:
        raise ValueError("the image was given as pixels and has no name: say what its files are to be called")
    kinds = ("labels.png", "overlay.png", *(["html"] if page else []), "json")
    return [folder / f"{name}.{kind}" for kind in kinds]


def run_lengths(labels_HW: np.ndarray) -> dict[int, list[int]]:
    """For each label that occurs, COCO's uncompressed run lengths of its mask, in one pass over the pixels."""
    flat = labels_HW.ravel(order="F")
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    ends = np.append(starts[1:], len(flat))
    labels = flat[starts]
    order = np.argsort(labels, kind="stable")
    found, firsts = np.unique(labels[order], return_index=True)
    counts = {}
    for label, runs in zip(found, np.split(order, firsts[1:]), strict=True):
        # Borders of the mask, from outside to inside and back, with the image's own two ends.
        borders = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        lengths = np.diff(borders, prepend=0, append=len(flat)).tolist()
        counts[int(label)] = lengths if lengths[-1] else lengths[:-1]
    return counts
