"""Makes the report at the end of a build: what the data set contains, what was left out, and what looks wrong.

The report is stored in dataset.json under "report".
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow

from kiloseg.data.writing.current import working_on
from kiloseg.data.writing.shard import Sample

MOSTLY = 0.5
"""The report warns about a larger share of ignored pixels than this, from 0 to 1."""
ALMOST_ALL = 0.99
"""The report warns about a class with a larger share of the labeled pixels than this, from 0 to 1."""
FEW = 0.01
"""The report warns about a larger share of regions without a pixel than this, from 0 to 1."""
NAMED = 8
"""Number of classes or samples that a line names."""

REGIONS, SHAPELESS, HIDDEN, UNANNOTATED = (
    "regions",
    "regions_without_shape",
    "objects_hidden",
    "images_without_annotation",
)
WHITE = "masks_with_255_ignored"
NARROW = "masks_of_8_bits_under_more_than_256_ids"
BOXES = "regions_that_are_boxes"
WITHOUT_PIXEL = "regions_without_pixel"
WITHOUT_LABEL = "tiles_without_label"
"""Names of what a builder counts sample by sample."""

WORDS = {
    SHAPELESS: "regions without a shape, which cannot be drawn",
    HIDDEN: "objects that others hide completely",
    WITHOUT_PIXEL: "regions without a pixel, outside of their image or smaller than one",
    UNANNOTATED: "images without an annotation",
    WITHOUT_LABEL: "tiles without a label, which are left out",
}


@dataclass
class Notes:
    """Collects facts for the report while the samples of a shard are written."""

    counts: Counter[str] = field(default_factory=Counter)
    """Sums of `Sample.counts`."""
    images: list[str] = field(default_factory=list)
    """A short digest of the bytes of each image that comes from a file."""

    def following(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yields the samples and takes note of each one, and of which one the process works on."""
        working_on("the first sample")
        for sample in samples:
            working_on(f"sample {sample.key}")
            self.counts.update(sample.counts)
            self.images.append(image_digest(sample.image) if isinstance(sample.image, bytes) else "")
            yield sample
            working_on(f"the sample after {sample.key}")


def image_digest(image: bytes) -> str:
    """Returns a short digest that is equal for equal bytes and almost never equal for different ones."""
    return hashlib.blake2b(image, digest_size=10).hexdigest()


class Tally:
    """Adds up the index, one shard at a time, to make a report.

    Args:
        classes: one name per class id.
        background: the id of the background, if there is one.
    """

    def __init__(self, classes: list[str], background: int | None) -> None:
        self._classes = classes
        self._background = background
        self._samples: Counter[str] = Counter()
        self._area: Counter[str] = Counter()
        self._pixels: dict[str, np.ndarray] = {}
        self._counts: Counter[str] = Counter()
        self._images: dict[str, tuple[str, str]] = {}
        self._twins: dict[str, list[str]] = {"one split": [], "two splits": []}

    def add(self, split: str, rows: pyarrow.Table, notes: Notes) -> None:
        """Adds a shard: its rows of the index and the notes taken while it was written."""
        self._samples[split] += rows.num_rows
        heights, widths = (rows[name].to_numpy().astype(np.int64) for name in ("height", "width"))
        self._area[split] += int((heights * widths).sum())
        pixels = self._pixels.setdefault(split, np.zeros(len(self._classes), np.int64))
        ids, counts = (rows[name].combine_chunks().flatten().to_numpy() for name in ("class_ids", "class_pixels"))
        np.add.at(pixels, ids, counts)
        self._counts.update(notes.counts)
        for key, digest in zip(rows["key"].to_pylist(), notes.images, strict=False):
            if not digest:
                continue
            other_split, other = self._images.setdefault(digest, (split, key))
            if (other_split, other) != (split, key):
                kind = "one split" if split == other_split else "two splits"
                self._twins[kind].append(f"{other_split} {other} = {split} {key}")

    def report(self, left_out: Mapping[str, int]) -> dict[str, Any]:
        """Returns the report in JSON types; its "warnings" are sentences. `left_out` has the number of files by kind."""
        labeled = {split: int(pixels.sum()) for split, pixels in self._pixels.items()}
        shares = {split: 1 - labeled[split] / max(area, 1) for split, area in self._area.items()}
        found: dict[str, Any] = {
            "samples": dict(self._samples),
            "ignored": {split: round(share, 6) for split, share in shares.items()},
            "classes_without_sample": {
                split: np.flatnonzero(pixels == 0).tolist() for split, pixels in self._pixels.items()
            },
            "left_out": dict(left_out),
            "equal_images": {kind: len(twins) for kind, twins in self._twins.items()},
            **{name: self._counts[name] for name in WORDS},
        }
        if self._background is not None:
            found["background"] = {
                split: round(int(pixels[self._background]) / max(self._area[split], 1), 6)
                for split, pixels in self._pixels.items()
            }
        return found | {"warnings": list(self._warnings(shares, labeled))}

    def _warnings(self, ignored: Mapping[str, float], labeled: Mapping[str, int]) -> Iterator[str]:
        for split in ("train", "val"):
            if split not in self._samples:
                yield f"there is no split {split}"
        train, val = self._pixels.get("train"), self._pixels.get("val")
        if train is not None and val is not None:
            unseen = np.flatnonzero((val > 0) & (train == 0)).tolist()
            if unseen:
                yield (
                    f"{len(unseen)} classes are in val but not in train: {self._names(unseen)}; no network can learn them; "
                    "split the images differently"
                )
        absent = np.flatnonzero(sum(self._pixels.values(), np.zeros(len(self._classes), np.int64)) == 0).tolist()
        if self._counts[WHITE] and absent:
            yield (
                f"id 255 is ignored in {self._counts[WHITE]} masks, and no sample shows class {self._names(absent)}; if 255 means "
                "that class, give it id 255 in the table of names"
            )
        for split, share in ignored.items():
            if share > MOSTLY:
                yield f"{share:.1%} of the pixels of {split} are ignored; check that the labels are complete and no ids are missing"
        for split, pixels in self._pixels.items():
            most = int(pixels.argmax())
            if labeled[split] and pixels[most] > ALMOST_ALL * labeled[split] and (pixels > 0).sum() > 1:
                share = pixels[most] / labeled[split]
                yield f"{share:.2%} of the labeled pixels of {split} are class {most} {self._classes[most]!r}"
            elif labeled[split] and (pixels > 0).sum() == 1:
                yield f"all labeled pixels of {split} are class {most} {self._classes[most]!r}"
        alike = _alike(self._classes)
        if alike:
            yield (
                f"{len(alike)} names of classes differ from another in case or blanks alone: {_some(alike)}; if they mean one "
                "class, correct the labels"
            )
        if self._counts[NARROW]:
            yield (
                f"{self._counts[NARROW]} masks have 8 bits, though classes have ids above 255: no such class can be in them, and "
                "if masks were saved with larger ids, those are now others; save them again with 16 bits"
            )
        drawn = self._counts[REGIONS] - self._counts[SHAPELESS]
        if self._counts[BOXES] and self._counts[BOXES] == drawn:
            yield (
                f"all {drawn} regions are upright boxes, which are drawn full; if they are boxes around objects, as for detection, "
                "most of their borders are labeled wrongly: export polygons or masks"
            )
        if self._counts[WITHOUT_PIXEL] > FEW * drawn:
            yield (
                f"{self._counts[WITHOUT_PIXEL]} of {drawn} regions have no pixel: they lie outside of their images, or are smaller "
                "than one; check whether images were resized after they were labeled"
            )
        if self._counts[HIDDEN]:
            yield f"{self._counts[HIDDEN]} objects are hidden completely by others; check --overlap"
        if self._counts[SHAPELESS]:
            yield f"{self._counts[SHAPELESS]} of {self._counts[REGIONS]} regions have no shape and are not drawn"
        if self._twins["two splits"]:
            yield (
                f"{len(self._twins['two splits'])} images of one split are byte for byte in another: "
                f"{_some(self._twins['two splits'])}; validation on them measures memorization"
            )
        if self._twins["one split"]:
            yield f"{len(self._twins['one split'])} images occur twice: {_some(self._twins['one split'])}"

    def _names(self, ids: list[int]) -> str:
        return _some([f"{class_id} {self._classes[class_id]!r}" for class_id in ids])


def _alike(classes: list[str]) -> list[str]:
    """Returns pairs of names that differ in case or blanks alone."""
    found: dict[str, str] = {}
    firsts = ((name, found.setdefault(" ".join(name.casefold().split()), name)) for name in classes)
    return [f"{first!r} and {name!r}" for name, first in firsts if first != name]


def _some(words: list[str]) -> str:
    return ", ".join(words[:NAMED]) + (", ..." if len(words) > NAMED else "")


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the report as they are printed: everything that is not zero, then the warnings."""
    for split, number in report["samples"].items():
        parts = [f"{number} samples", f"{report['ignored'][split]:.1%} of the pixels ignored"]
        if "background" in report:
            parts.append(f"{report['background'][split]:.1%} background")
        parts.append(f"{len(report['classes_without_sample'][split])} classes in no sample")
        yield f"report: {split}: {', '.join(parts)}"
    for name, words in WORDS.items():
        if report[name]:
            yield f"report: {report[name]} {words}"
    for kind, number in report["left_out"].items():
        yield f"report: left out: {number} {kind}"
    for warning in report["warnings"]:
        yield f"warning: {warning}"
