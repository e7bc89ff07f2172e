"""Defines the two versions of the emoji data set: whose drawings each split shows."""

from __future__ import annotations

from dataclasses import dataclass

from synthetic.emoji_packages import DRAWINGS, PACKAGES, Package


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Describes what a version of the data set is made of."""

    version: int
    """The version is raised with every change that changes a sample, so numbers on different versions are never compared."""
    vendors: dict[str, tuple[str, ...]]
    """Maps splits to the vendors whose drawings they show."""
    pictures: tuple[Package, ...]
    """The packages of vendors that draw every class; they decide which classes there are."""
    drawings: tuple[Package, ...]
    """Further packages, whose vendors may lack classes."""
    varied_backgrounds: bool
    """Whether photographs are blended, recolored and warped, with procedural textures among those of train."""

    @property
    def validation_splits(self) -> tuple[str, ...]:
        """Returns all splits but train."""
        return tuple(split for split in self.vendors if split != "train")


_TRAINING_VENDORS = ("google", "twitter", "noto-v1", "emojione", "emojione-v1")

RECIPES = {
    1: Recipe(
        version=1,
        vendors={"train": ("google", "twitter"), "val": ("fluent",)},
        pictures=PACKAGES,
        drawings=(),
        varied_backgrounds=False,
    ),
    2: Recipe(
        version=2,
        vendors={"train": _TRAINING_VENDORS, "val": _TRAINING_VENDORS, "val_style": ("fluent", "openmoji")},
        pictures=PACKAGES,
        drawings=DRAWINGS,
        varied_backgrounds=True,
    ),
}
"""The recipes by version. In version 1, split val shows a vendor that train never shows. Version 2 asks two separate questions:
val shows the vendors of train in scenes and before photographs that train never shows; val_style shows two vendors, one of shaded
solids and one of outlined areas, that train never shows."""
