"""Draws the scenes of the glyphs data set: characters on colored plates before photographs."""

from __future__ import annotations

import functools
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
import PIL
from PIL import Image

from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import MAX_CLASSES
from kiloseg.data.writing.build import ShardTask
from kiloseg.data.writing.output import Output
from kiloseg.data.writing.shard import Sample
from synthetic.backgrounds import packaged_photograph, random_square
from synthetic.glyph_characters import CUTS
from synthetic.glyph_objects import INNER_RADIUS, Placement, draw_object

NAME = "glyphs"
VERSION = 2
"""The version is raised with every change to this file or glyph_objects.py that changes a sample."""

PHOTOGRAPHS = ("china.jpg", "flower.jpg")

Frequency = Literal["uniform", "zipf"]
MaskKind = Literal["plate", "glyph"]

FEWEST_OBJECTS, MOST_OBJECTS = 4, 9
PLATE_SIDES = (0.23, 0.42)
"""The smallest and largest diameter of a plate as a share of the scene: 22 to 40 pixels of 96."""
PLACES = 6
"""A plate goes to the emptiest of this many random places: half of all objects are partly hidden, 3 in 100 beyond
NAMEABLE. With a single place it would be 25 in 100."""
MAX_ROTATION = 15.0
"""The largest turn in degrees, either way. It is small so that 6 and 9, or M and W, stay what they are."""
NAMEABLE = 1 / 3
"""An object of which less than this share is visible is ignored: nobody could name it."""

LUMINANCE = np.array([0.299, 0.587, 0.114])

# These say what a stream of random numbers is for, so that no two streams are the same.
_COUNTS, _ROUND, _SCENE = range(3)


@dataclass(frozen=True, kw_only=True)
class Recipe(Output):
    """Builds the glyphs data set: characters on colored plates before photographs, one class per character.

    An equal recipe gives an equal digest, whatever the number of processes. A folder that was already built from this
    recipe is left as it is.
    """

    num_classes: int = 64
    """The number of classes including the background, from 2 to about 2,000; an error names the exact maximum. A-Z, a-z and 0-9
    come first, without those that look like an earlier one, then the others by code point."""
    train_samples: int = 4000
    """The number of scenes in split train."""
    val_samples: int = 400
    """The number of scenes in split val, 6.5 objects each on average. Every class is placed objects / classes times, rounded down
    or up; about 3 in 100 objects end up hidden, so plan for several rounds: val_samples above num_classes / 2."""
    size: int = 96
    """The side of a scene in pixels, at least 64; plates have 0.23 to 0.42 of it."""
    seed: int = 0
    """The random seed; another seed gives other scenes of the same classes."""
    frequency: Frequency = "uniform"
    """The class frequency in train. uniform uses shuffled rounds over all classes, so the numbers of objects of any two classes
    differ by at most 1. zipf draws class k in proportion to 1/k. Val is always uniform."""
    mask: MaskKind = "plate"
    """The area that is labeled as the class. plate is the whole plate, which a network at stride 4 can follow. glyph is the
    strokes alone; the plate then counts as background."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            2 <= self.num_classes <= MAX_CLASSES, "num_classes", self.num_classes, "at least 2, with the background"
        )
        for name in ("train_samples", "val_samples"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(self.size >= 64, "size", self.size, "at least 64 pixels, since smaller characters cannot be read")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        for name, kinds in (("frequency", Frequency), ("mask", MaskKind)):
            _require(
                getattr(self, name) in typing.get_args(kinds),
                name,
                getattr(self, name),
                f"one of {', '.join(typing.get_args(kinds))}",
            )

    def content(self) -> dict[str, Any]:
        """Returns everything that decides the bytes of the shards, as JSON-able values."""
        # Pillow draws, resizes and compresses, matplotlib brings the fonts, and NumPy may change its generators.
        libraries = {"pillow": PIL.__version__, "matplotlib": matplotlib.__version__, "numpy": np.__version__}
        return {"builder": NAME, "version": VERSION, **self.settings(), **libraries}


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value!r}: expected {expected}")


def make_samples(task: ShardTask, *, recipe: Recipe, characters: list[str]) -> Iterator[Sample]:
    """Draws the samples of one shard; each depends only on its number in the split and on the recipe."""
    split = list(CUTS).index(task.split)
    numbers = object_counts(recipe, task.split, task.stop)
    ends = np.cumsum(numbers)
    for index in range(task.start, task.stop):
        rng = np.random.default_rng([recipe.seed, split, _SCENE, index])
        if task.split == "train" and recipe.frequency == "zipf":
            class_ids = _zipf(rng, len(characters), numbers[index])
        else:
            class_ids = _rounds(recipe.seed, split, len(characters), ends[index] - numbers[index], ends[index])
        image, mask, objects = _scene(rng, recipe, characters, class_ids, CUTS[task.split])
        yield Sample(key=f"{task.split}-{index:07d}", image=image, mask=mask, meta={"objects": objects})


def object_counts(recipe: Recipe, split: str, num_samples: int) -> np.ndarray:
    """Returns the number of objects in each of the first `num_samples` scenes; a longer answer begins with the shorter one."""
    rng = np.random.default_rng([recipe.seed, list(CUTS).index(split), _COUNTS])
    return rng.integers(FEWEST_OBJECTS, MOST_OBJECTS + 1, size=num_samples)


def _rounds(seed: int, split: int, num_characters: int, start: int, stop: int) -> np.ndarray:
    """Returns class ids of the objects numbered `start` to `stop` - 1; each round over all classes is shuffled anew."""
    numbers = np.arange(start, stop)
    rounds = numbers // num_characters
    orders = {
        r: np.random.default_rng([seed, split, _ROUND, r]).permutation(num_characters) for r in set(rounds.tolist())
    }
    return np.array(
        [orders[r][number % num_characters] + 1 for r, number in zip(rounds.tolist(), numbers, strict=True)]
    )


def _zipf(rng: np.random.Generator, num_characters: int, count: int) -> np.ndarray:
    """Returns class ids with probability in proportion to 1 / id."""
    ends = _harmonic(num_characters)
    return np.searchsorted(ends, rng.random(count) * ends[-1], side="right") + 1


@functools.lru_cache
def _harmonic(number: int) -> np.ndarray:
    return np.cumsum(1 / np.arange(1, number + 1))


def _scene(
    rng: np.random.Generator, recipe: Recipe, characters: list[str], class_ids: np.ndarray, cuts: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Returns image uint8 (size, size, 3), mask uint16 (size, size) and a JSON-able description of each object."""
    size = recipe.size
    image = random_square(rng, _photographs(), size)
    owner = np.full((size, size), -1, np.int8)
    strokes = np.zeros((size, size), bool)
    placements = _place(rng, size, characters, class_ids, cuts)
    placed = []
    for number, placement in enumerate(placements):
        window, plate, glyph = draw_object(placement, size)
        for alpha, color in ((plate, placement.plate_color), (glyph, placement.glyph_color)):
            image[window] += alpha[..., None] * (color - image[window])
        plate_cells = plate >= 0.5
        # Hairlines thinner than a pixel never reach half coverage.
        glyph_cells = plate_cells & (glyph >= 0.5 * glyph.max())
        owner[window][plate_cells] = number
        strokes[window][plate_cells] = glyph_cells[plate_cells]
        placed.append((window, plate_cells, plate_cells.sum(), glyph_cells.sum()))
    image += rng.uniform(2, 10) * rng.standard_normal(image.shape, np.float32)
    image = np.clip(image + 0.5, 0, 255).astype(np.uint8)

    mask = np.zeros((size, size), np.uint16)
    objects = []
    for number, (placement, (window, plate_cells, plate_area, glyph_area)) in enumerate(
        zip(placements, placed, strict=True)
    ):
        seen = owner[window] == number
        seen_strokes = seen & strokes[window]
        # A plate without its character identifies nothing, so the worse of the two counts.
        visible = round(float(min(seen.sum() / plate_area, seen_strokes.sum() / glyph_area)), 3)
        mask[window][seen if recipe.mask == "plate" else seen_strokes] = (
            placement.class_id if visible >= NAMEABLE else IGNORE_ID
        )
        rows, columns = np.flatnonzero(plate_cells.any(1)), np.flatnonzero(plate_cells.any(0))
        top, left = window[0].start, window[1].start
        objects.append(
            {
                "character": placement.character,
                "class": placement.class_id,
                "cut": placement.cut,
                "visible": visible,
                # left, top, right, bottom of the whole plate in pixels, right and bottom exclusive
                "box": [
                    int(left + columns[0]),
                    int(top + rows[0]),
                    int(left + columns[-1] + 1),
                    int(top + rows[-1] + 1),
                ],
            }
        )
    return image, mask, objects


@functools.lru_cache
def _photographs() -> list[Image.Image]:
    return [Image.open(packaged_photograph("sklearn", name)).convert("RGB") for name in PHOTOGRAPHS]


def _place(
    rng: np.random.Generator, size: int, characters: list[str], class_ids: np.ndarray, cuts: tuple[str, ...]
) -> list[Placement]:
    """Returns random plates, entirely inside the scene, in drawing order."""
    placements: list[Placement] = []
    for class_id in class_ids.tolist():
        radius = rng.uniform(*PLATE_SIDES) * size / 2
        centers = rng.uniform(radius + 1, size - radius - 1, size=(PLACES, 2))
        if placements:
            others = np.array([other.center for other in placements])
            reach = np.array([other.radius for other in placements]) + radius
            gaps = np.hypot(*(centers[:, None] - others).transpose(2, 0, 1)) / reach
            center = centers[gaps.min(1).argmax()]
        else:
            center = centers[0]
        plate_color, glyph_color = _colors(rng)
        placements.append(
            Placement(
                class_id=class_id,
                character=characters[class_id - 1],
                cut=cuts[rng.integers(len(cuts))],
                center=(float(center[0]), float(center[1])),
                radius=radius,
                angle=math.radians(rng.uniform(-MAX_ROTATION, MAX_ROTATION)),
                plate=list(INNER_RADIUS)[rng.integers(len(INNER_RADIUS))],
                plate_color=plate_color,
                glyph_color=glyph_color,
                fill=rng.uniform(0.85, 1.0),
            )
        )
    return placements


def _colors(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns any color for the plate, and for the character one that is much darker or much lighter."""
    plate = rng.uniform(0, 255, size=3)
    glyph = rng.uniform(0, 60, size=3)
    if plate @ LUMINANCE < 128:
        glyph = 255 - glyph
    return plate.astype(np.float32), glyph.astype(np.float32)
