"""Draws the scenes of the emoji data set: sprites before photographs, some of them hidden by others."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL

from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.description import DatasetInfo
from kiloseg.data.writing.shard import Sample
from kiloseg.storage.errors import DataError
from synthetic.backgrounds import random_square
from synthetic.emoji_backgrounds import varied_square
from synthetic.emoji_bank import Bank, read_bank
from synthetic.emoji_choice import SPLITS, Choice
from synthetic.emoji_objects import draw_object
from synthetic.emoji_photographs import by_credit, photographs_of
from synthetic.emoji_recipes import RECIPES, Recipe

NAME = "emoji"
PLACES = 4
"""An object goes to the emptiest of this many random places."""
NAMEABLE = 1 / 3
"""An object of which less than this share is visible is ignored: nobody could name it."""
SMALLEST_REST = 24
"""Fewer visible pixels than this, of 256 x 256, are ignored too, however small the whole object is."""

Frequency = Literal["zipf", "uniform"]

_SCENE = 2


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Says how many scenes there are, and what they are like."""

    train_samples: int = 20_000
    """The number of scenes in split train, 10 objects each on average; the rarest class is then placed 16 times on average."""
    val_samples: int = 3_000
    """The number of scenes in split val, 10 objects each on average; every class is placed equally often, give or take two."""
    size: int = 256
    """The side of a scene in pixels, at least 96; objects have 0.15 to 0.36 of it."""
    seed: int = 0
    """The random seed; another seed gives other scenes of the same classes."""
    frequency: Frequency = "zipf"
    """The class frequency in train. zipf draws class k in proportion to 1/k; uniform draws all equally. Val is always uniform."""
    recipe_version: int = 2
    """In version 2, val shows the vendors of train in new scenes, and val_style two vendors that train never shows. Version 1 is
    the first version, whose val shows a vendor that train never shows and which has no val_style; do not compare its figures with
    those of 2."""
    val_style_samples: int = 1_500
    """The number of scenes in split val_style of version 2, with as many objects as in val."""

    def __post_init__(self) -> None:
        for name, lowest in (
            ("train_samples", 1),
            ("val_samples", 1),
            ("val_style_samples", 1),
            ("size", 96),
            ("seed", 0),
        ):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} = {getattr(self, name)}: expected at least {lowest}")
        if self.frequency not in typing.get_args(Frequency):
            raise ValueError(f"frequency = {self.frequency!r}: expected one of {', '.join(typing.get_args(Frequency))}")
        if self.recipe_version not in RECIPES:
            raise ValueError(f"recipe_version = {self.recipe_version}: expected one of {', '.join(map(str, RECIPES))}")

    @property
    def recipe(self) -> Recipe:
        """Returns what the version is made of."""
        return RECIPES[self.recipe_version]

    @property
    def samples(self) -> dict[str, int]:
        """Maps splits to their number of scenes."""
        return {split: getattr(self, f"{split}_samples") for split in self.recipe.vendors}


def describe(scenes: Scenes, bank: Bank, *, digest: str, shard_size: int, command: str) -> DatasetInfo:
    """Describes the data set without its splits; `digest` is the bank's.

    Raises:
        DataError: The bank was made for another version.
    """
    version = scenes.recipe_version
    lacking = [name for shown in scenes.recipe.vendors.values() for name in shown if name not in bank.sprites]
    if lacking:
        raise DataError(
            f"the bank has no sprites by {', '.join(dict.fromkeys(lacking))}: expected a bank made for "
            f"recipe_version = {version}; name another file with --bank, or use --recipe-version 1 for a bank of version 1"
        )
    fields = {field.name: getattr(scenes, field.name) for field in dataclasses.fields(Scenes)}
    del fields["recipe_version"]
    if version == 1:
        del fields["val_style_samples"]
    # Pillow resizes and compresses, and NumPy may change its generators.
    libraries = {"pillow": PIL.__version__, "numpy": np.__version__}
    return DatasetInfo(
        name=NAME,
        classes=["background", *(one.name for one in bank.classes)],
        background=0,
        license=attribution(bank),
        command=command,
        recipe={"builder": NAME, "version": version, **fields, "shard_size": shard_size, "bank": digest, **libraries},
    )


def attribution(bank: Bank) -> str:
    """Returns the attribution for every sprite and photograph, as one text."""
    sprites = "; ".join(f"{vendor}: {credit}" for vendor, credit in bank.credits.items())
    photographs = "; ".join(f"{', '.join(names)}: {credit}" for credit, names in by_credit(bank.photographs).items())
    return (
        f"Sprites: {sprites}. Backgrounds: {photographs}. All were resized, rotated, mirrored, recolored, cut and drawn "
        "over one another."
    )


def make_scenes(split: str, start: int, stop: int, *, scenes: Scenes, bank: str, digest: str) -> Iterator[Sample]:
    """Draws samples `start` to `stop` - 1 of a split; each depends only on its number, on the bank and on `scenes`.

    Args:
        split: train, val or, in version 2, val_style.
        start: the first sample.
        stop: the end of the samples, exclusive.
        scenes: the description of the scenes.
        bank: the file of the bank.
        digest: the sha256 of the bank.

    Raises:
        DataError: The file is not the bank of that digest.
    """
    content = _bank(bank, digest)
    choice = _choice(bank, digest, scenes.seed, scenes.frequency)
    for index in range(start, stop):
        rng = np.random.default_rng([scenes.seed, SPLITS.index(split), _SCENE, index])
        image, mask, objects = _scene(rng, scenes, content, split, choice.class_ids(rng, split, index))
        yield Sample(key=f"{split}-{index:07d}", image=image, mask=mask, meta={"objects": objects})


@functools.lru_cache(maxsize=1)
def _bank(path: str, digest: str) -> Bank:
    bank, found = read_bank(Path(path))
    if found != digest:
        raise DataError(
            f"{path} has sha256 {found}, expected {digest}: it changed during the build; start the build again"
        )
    return bank


@functools.lru_cache(maxsize=1)
def _choice(path: str, digest: str, seed: int, frequency: Frequency) -> Choice:
    return Choice([one.subcategory for one in _bank(path, digest).classes], seed=seed, zipf=frequency == "zipf")


def _scene(
    rng: np.random.Generator, scenes: Scenes, bank: Bank, split: str, class_ids: list[int]
) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Returns image uint8 (size, size, 3), mask uint16 (size, size) and a JSON-able description of each object."""
    size = scenes.size
    image = _background(rng, scenes, bank, split)
    vendors = scenes.recipe.vendors[split]
    owner = np.full((size, size), -1, np.int8)
    placed: list[tuple[str, tuple[slice, slice], np.ndarray]] = []
    for number, class_id in enumerate(class_ids):
        drawn = [vendor for vendor in vendors if bank.sprites[vendor][class_id - 1, ..., 3].any()]
        vendor = drawn[rng.integers(len(drawn))]
        colors, opacity = draw_object(
            rng, bank.sprites[vendor][class_id - 1], size, mirrors=bank.classes[class_id - 1].mirrors
        )
        window = _place(rng, opacity.shape[:2], size, [other for _, other, _ in placed])
        cells = opacity[..., 0] >= 127.5
        under = image[window]
        under *= 1 - opacity * np.float32(1 / 255)
        under += colors
        owner[window][cells] = number
        placed.append((vendor, window, cells))
    # The noise is uniform: normal noise would take as long as all the objects.
    noise = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape)
    strength = rng.uniform(0.01, 0.06)
    image += noise * np.float32(strength)
    image += np.float32(0.5 - 127.5 * strength)  # half a step, to be rounded below
    np.clip(image, 0, 255, out=image)

    mask = np.zeros((size, size), np.uint16)
    objects = []
    for number, (class_id, (vendor, window, cells)) in enumerate(zip(class_ids, placed, strict=True)):
        seen = owner[window] == number
        # Thin lines may be less than half opaque everywhere once they are shrunk.
        visible = round(seen.sum() / max(cells.sum(), 1), 3)
        named = visible >= NAMEABLE and seen.sum() >= SMALLEST_REST * (size / 256) ** 2
        mask[window][seen] = class_id if named else IGNORE_ID
        shown = cells if cells.any() else np.ones_like(cells)
        rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        top, left = window[0].start, window[1].start
        objects.append(
            {
                "emoji": bank.classes[class_id - 1].name,
                "class": class_id,
                "vendor": vendor,
                "visible": float(visible),
                "named": bool(named),
                # left, top, right, bottom of the whole object in pixels, right and bottom exclusive
                "box": [
                    int(left + columns[0]),
                    int(top + rows[0]),
                    int(left + columns[-1] + 1),
                    int(top + rows[-1] + 1),
                ],
            }
        )
    return image.astype(np.uint8), mask, objects


def _background(rng: np.random.Generator, scenes: Scenes, bank: Bank, split: str) -> np.ndarray:
    """Returns a background as float32 (size, size, 3). Textures, which cannot be kept apart like photographs, are only for
    train."""
    photographs = [photograph.image for photograph in photographs_of(split, bank.photographs)]
    if scenes.recipe.varied_backgrounds:
        return varied_square(rng, photographs, scenes.size, textures=split == "train")
    return random_square(rng, photographs, scenes.size)


def _place(
    rng: np.random.Generator, shape: tuple[int, int], size: int, others: list[tuple[slice, slice]]
) -> tuple[slice, slice]:
    """Returns the window for an object of shape (height, width), entirely inside: the least occupied of some random ones."""
    height, width = shape
    places = [
        (int(down * (size - height + 1)), int(across * (size - width + 1)))
        for down, across in rng.random((PLACES, 2)).tolist()
    ]

    def hidden(place: tuple[int, int]) -> float:
        """Adds up the shares of the others' windows that would be covered."""
        top, left = place
        total = 0.0
        for rows, columns in others:  # they are so few that NumPy would take longer
            high = min(top + height, rows.stop) - max(top, rows.start)
            wide = min(left + width, columns.stop) - max(left, columns.start)
            if high > 0 and wide > 0:
                total += high * wide / ((rows.stop - rows.start) * (columns.stop - columns.start))
        return total

    top, left = min(places, key=hidden)
    return slice(top, top + height), slice(left, left + width)
