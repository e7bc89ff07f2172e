"""Finds groups of a model's classes: in a table, in WordNet by LVIS's synsets, or by clustering the class table.

Every function returns a path of group names for each class, the largest group first, as `ModelClasses.groups` holds them.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.groups import check_paths
from kiloseg.inference.wordnet import WordNet

MAX_CLUSTERED = 20_000
"""Most classes that are clustered: all of their distances take 8 bytes for each pair, 1.6 GB here."""


def groups_of_table(classes: ModelClasses, path: Path | str) -> list[list[str]]:
    """Reads groups from a csv file with a header: the class's name or id first, then its groups, the largest first.

    Cells at the end of a row may be empty. Classes without a row have no group.

    Raises:
        ValueError: the file cannot be read, has a class twice or one that the model does not have, or a group has two parents;
            the message names the line.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}): expected a csv file with the columns class, group, ..."
        ) from error
    if len(rows) < 2 or len(rows[0]) < 2:
        raise ValueError(f"{path}: expected a header such as class,group,subgroup, and a line for each class")
    by_name = {name: label for label, name in enumerate(classes.names)}
    by_id = {str(number): label for label, number in enumerate(classes.ids.tolist())}
    found: dict[int, tuple[int, list[str]]] = {}
    for line, row in enumerate(rows[1:], start=2):
        if not any(row):
            continue
        label = by_name.get(row[0], by_id.get(row[0].strip()))
        if label is None:
            raise ValueError(f"{path}, line {line}: the model has no class {row[0]!r} (kiloseg classes SOURCE list)")
        if label in found:
            raise ValueError(
                f"{path}, line {line}: class {classes.names[label]!r} is there twice, first in line {found[label][0]}; keep one"
            )
        names = [cell.strip() for cell in row[1:]]
        while names and not names[-1]:
            names.pop()
        if "" in names:
            raise ValueError(
                f"{path}, line {line}: a group of class {row[0]!r} has no name, but a smaller one below has"
            )
        found[label] = line, names
    paths = [found[label][1] if label in found else [] for label in range(len(classes))]
    check_paths(paths, str(path))
    return paths


def groups_of_synsets(classes: ModelClasses, lvis: Path | str, wordnet: Path | str) -> list[list[str]]:
    """Finds groups as the hypernyms in WordNet of the synsets that an LVIS annotation file gives its categories.

    Args:
        classes: the model's classes; those that are called as no category have no group.
        lvis: a file such as lvis_v1_val.json, with `categories` of `name` and `synset`.
        wordnet: WordNet's folder `dict`, with index.noun and data.noun (https://wordnet.princeton.edu/download).

    Raises:
        ValueError: a file cannot be read, or no class is called as a category.
    """
    try:
        content = json.loads(Path(lvis).read_bytes())
        synsets = {category["name"]: category["synset"] for category in content["categories"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{lvis} cannot be used ({type(error).__name__}: {error}): expected LVIS's annotations with categories, each with "
            "name and synset"
        ) from error
    words = WordNet(wordnet)
    chains = [words.hypernyms(synsets[name]) if name in synsets else [] for name in classes.names]
    if not any(chains):
        raise ValueError(f"{lvis}: no category with a synset in {wordnet} is called as a class of the model")
    paths = _without_idle_groups(chains)
    check_paths(paths, str(lvis))
    return paths


def _without_idle_groups(chains: Sequence[Sequence[str]]) -> list[list[str]]:
    """Leaves out groups of one class, of all classes, and those with the same classes as a group below."""
    sizes = Counter(name for chain in chains for name in chain)
    everything = sum(1 for chain in chains if chain)
    paths = []
    for chain in chains:
        kept: list[str] = []
        for name in chain:
            if kept and sizes[kept[-1]] == sizes[name]:
                kept.pop()
            if 1 < sizes[name] < everything:
                kept.append(name)
        paths.append(kept)
    return paths


def groups_of_clusters(classes: ModelClasses, rows_CD: Tensor, numbers: Sequence[int]) -> list[list[str]]:
    """Clusters the class table by average linkage of cosine distances (scipy.cluster.hierarchy).

    A group is named after the class nearest to its mean. The background stays by itself.

    Args:
        classes: the model's classes.
        rows_CD: the class table.
        numbers: number of groups of each level, ascending, each from 2 to C - 1.

    Raises:
        ValueError: the numbers are impossible, or there are more than MAX_CLUSTERED classes.
    """
    members = np.array([label for label in range(len(classes)) if label != classes.background])
    if len(members) > MAX_CLUSTERED:
        raise ValueError(
            f"{len(members):,} classes are too many to be clustered: expected at most {MAX_CLUSTERED:,}; give a table of groups"
        )
    if not numbers or list(numbers) != sorted(set(numbers)) or not 2 <= numbers[0] <= numbers[-1] < len(members):
        raise ValueError(
            f"numbers of groups {', '.join(map(str, numbers)) or 'are missing'}: expected ascending numbers from 2 to "
            f"{len(members) - 1}, one for each level"
        )
    # scipy is imported here since it takes half a second, and nothing else of the package needs it.
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    unit_CD = F.normalize(rows_CD.double(), dim=1).numpy()[members]
    # Rounding can put the distance of equal rows below 0, which linkage refuses.
    tree = linkage(pdist(unit_CD, "cosine").clip(min=0), "average")
    paths: list[list[str]] = [[] for _ in range(len(classes))]
    for number in numbers:
        cluster_of = fcluster(tree, number, "maxclust")
        for cluster in np.unique(cluster_of):
            inside = np.flatnonzero(cluster_of == cluster)
            central = inside[(unit_CD[inside] @ unit_CD[inside].mean(0)).argmax()]
            name = f"like {classes.names[members[central]]} ({len(inside)})"
            for label in members[inside]:
                if not paths[label] or paths[label][-1] != name:
                    paths[label].append(name)
    return paths
