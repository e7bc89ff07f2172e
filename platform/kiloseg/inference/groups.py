"""Describes groups of classes as a tree: every class belongs to a group of each level, the largest groups first.

A class has a path of names, such as ("furniture", "seat"). A path may be shorter than others: the class then belongs to its last
group on all further levels, and a class without a path is a group of its own.

Shapes: C classes, L levels, G groups of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kiloseg.inference.classes import ModelClasses


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """One level of a tree of groups."""

    names: list[str]
    """Names of the G groups, in the order of their first class."""
    keys: list[tuple[str, ...]]
    """Path of every group from the top; ("", NAME) for a class without a group, which is a group of its own."""
    group_of: np.ndarray
    """The group of every class, 0 to G - 1: int64 of shape (C,)."""


def levels_of(classes: ModelClasses) -> list[Level]:
    """Returns the levels of the classes' groups, the largest groups first; none if the classes have no groups."""
    paths = classes.groups or []
    levels = []
    for depth in range(1, max(map(len, paths), default=0) + 1):
        found: dict[tuple[str, ...], int] = {}
        names, group_of = [], []
        for label, path in enumerate(paths):
            # Groups of one name under different parents are different. The empty part keeps a class apart from all groups.
            key = tuple(path[:depth]) or ("", classes.names[label])
            if key not in found:
                found[key] = len(found)
                names.append(key[-1])
            group_of.append(found[key])
        levels.append(Level(names=names, keys=list(found), group_of=np.array(group_of, dtype=np.int64)))
    return levels


def check_paths(paths: Sequence[Sequence[str]], source: str) -> None:
    """Raises ValueError if one name stands for groups under different parents, or a path is empty for all classes."""
    parents: dict[str, tuple[str, ...]] = {}
    for path in paths:
        for depth, name in enumerate(path):
            above = tuple(path[:depth])
            if parents.setdefault(name, above) != above:
                first, second = (" > ".join(each) or "the top" for each in (parents[name], above))
                raise ValueError(
                    f"{source}: group {name!r} is below {first} and below {second}: expected one place; give one of them another "
                    "name"
                )
    if not parents:
        raise ValueError(f"{source}: no class has a group")
