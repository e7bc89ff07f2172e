"""Chooses which classes the scenes of the emoji data set show: by Zipf's law in training, all equally often in validation."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np

SPLITS = ("train", "val", "val_style")
"""A split's position here seeds its random numbers, so new splits go to the end."""
FEWEST_OBJECTS, MOST_OBJECTS = 6, 14
THEME = 0.6
"""The share of a scene's objects that come from one subcategory: things that occur together in life are often alike."""

# These say what a stream of random numbers is for, so that no two streams are the same; scenes themselves use 2.
_COUNTS, _ROUND = range(2)
_BLOCK = 1024


class Choice:
    """Draws class ids, 1 to C, for the scenes of all splits.

    In training, every object is drawn separately: with probability THEME from the scene's subcategory, which is itself drawn by
    the frequency of its classes, and otherwise from all. So each object has class k with probability in proportion to 1 / k,
    whatever the theme. In a validation split, the objects of all scenes are one long deal, in rounds of all classes, so any two
    classes are placed equally often, give or take one per stream.

    Args:
        subcategories: the subcategories of class 1, 2, ... C.
        seed: the seed of the data set.
        zipf: whether frequencies in training fall with 1 / k; otherwise they are equal.
    """

    def __init__(self, subcategories: list[str], *, seed: int, zipf: bool) -> None:
        self.seed = seed
        self.count = len(subcategories)
        ids = np.arange(1, self.count + 1)
        weights = 1 / ids if zipf else np.ones(self.count)
        names = sorted(set(subcategories))
        self.subcategory = np.array([names.index(name) for name in subcategories])
        members = [ids[self.subcategory == number] for number in range(len(names))]
        self.all = _Weighted(ids, weights)
        self.of_subcategory = [_Weighted(those, weights[those - 1]) for those in members]
        self._rounds: dict[tuple[str, int], np.ndarray] = {}

    def class_ids(self, rng: np.random.Generator, split: str, index: int) -> list[int]:
        """Returns the classes of a scene's objects, in the order in which they are drawn; `rng` is the scene's own."""
        start, stop = self._objects(split, index)
        if split != "train":
            themed = self._deal(split, "themed", int(start * THEME), int(stop * THEME))
            loose = self._deal(split, "loose", start - int(start * THEME), stop - int(stop * THEME))
            return rng.permutation(themed + loose).tolist()
        theme = self.subcategory[self.all.draw(rng, 1)[0] - 1]
        themed_count = int(rng.binomial(stop - start, THEME))
        drawn = np.concatenate(
            [self.of_subcategory[theme].draw(rng, themed_count), self.all.draw(rng, stop - start - themed_count)]
        )
        return rng.permutation(drawn).tolist()

    def _objects(self, split: str, index: int) -> tuple[int, int]:
        """Returns the first and end number of a scene's objects among those of all scenes."""
        block, within = divmod(index, _BLOCK)
        start = sum(int(_block(self.seed, split, earlier)[-1]) for earlier in range(block))
        ends = _block(self.seed, split, block)
        return start + (int(ends[within - 1]) if within else 0), start + int(ends[within])

    def _deal(self, split: str, stream: Literal["themed", "loose"], start: int, stop: int) -> list[int]:
        """Returns the class ids `start` to `stop` - 1 of one of the two streams of a validation split.

        In each round the classes are shuffled and split in two: the first THEME of them, sorted into subcategories in a random
        order, are that round of the themed stream; the others are that of the loose one.
        """
        themed = round(self.count * THEME)
        length = themed if stream == "themed" else self.count - themed
        offset = 0 if stream == "themed" else themed
        return [int(self._round(split, number // length)[offset + number % length]) for number in range(start, stop)]

    def _round(self, split: str, number: int) -> np.ndarray:
        if (split, number) not in self._rounds:
            rng = np.random.default_rng([self.seed, SPLITS.index(split), _ROUND, number])
            order = rng.permutation(self.count)
            rank = rng.permutation(self.subcategory.max() + 1)
            themed = order[: round(self.count * THEME)]
            themed[:] = themed[np.argsort(rank[self.subcategory[themed]], kind="stable")]
            self._rounds[split, number] = order + 1
        return self._rounds[split, number]


class _Weighted:
    """Draws from ids in proportion to weights."""

    def __init__(self, ids: np.ndarray, weights: np.ndarray) -> None:
        self.ids = ids
        self.ends = np.cumsum(weights)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self.ids[np.searchsorted(self.ends, rng.random(count) * self.ends[-1], side="right")]


@functools.lru_cache(maxsize=4096)
def _block(seed: int, split: str, block: int) -> np.ndarray:
    """Returns running sums of the numbers of objects of _BLOCK scenes."""
    rng = np.random.default_rng([seed, SPLITS.index(split), _COUNTS, block])
    return np.cumsum(rng.integers(FEWEST_OBJECTS, MOST_OBJECTS + 1, _BLOCK))
