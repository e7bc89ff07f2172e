"""Changes the classes of a trained model without training, by editing the rows of its class table.

Each function takes the content of a checkpoint (`kiloseg.inference.loading.content_of`) and returns a new one without the
optimizer's state: a changed model can predict, but cannot continue training.

A model with several prototypes a class keeps them all, as (C, k, D), where classes are renamed, removed or added.

Shapes: C classes, D embedding, N new classes, k prototypes of a class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.examples import Embedded, Example, embed_examples
from kiloseg.inference.loading import classes_of
from kiloseg.inference.row_fitting import fit_rows
from kiloseg.models.heads import Head
from kiloseg.ops.tiles import tile_pixels, tiles
from kiloseg.training.evaluation import segmenter_of

PROTOTYPES = "head.table.rows_CkD"
"""Name of the prototypes in a checkpoint."""
TABLES = ("head.table.rows_CD", "table.rows_CD", PROTOTYPES)
"""Names of the class table in a checkpoint; the second is used by checkpoints from before the package had heads."""


def rename(content: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Renames one class.

    Raises:
        ValueError: not exactly one class is called `old`, one is already called `new`, or `new` is empty.
    """
    classes = classes_of(content)
    _check_new(classes, new)
    label = _label(classes, old)
    names = [new if number == label else name for number, name in enumerate(classes.names)]
    others = [classes.also_called(number) + [old] * (number == label) for number in range(len(classes))]
    return _changed(content, dataclasses.replace(classes, names=names, other_names=others), _rows(content))


def remove(content: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Removes classes; their pixels then get the nearest of the remaining classes.

    Raises:
        ValueError: a name does not belong to exactly one class, or fewer than two classes would be left.
    """
    classes = classes_of(content)
    gone = {_label(classes, name) for name in names}
    kept = np.array([label for label in range(len(classes)) if label not in gone])
    if len(kept) < 2:
        raise ValueError(f"removing {len(gone)} of {len(classes)} classes leaves {len(kept)}: expected at least 2")
    lost = [name for label in sorted(gone) for name in (classes.names[label], *classes.also_called(label))]
    left = classes.take(kept, removed=[*classes.removed, *lost])
    return _changed(content, left, _rows(content)[torch.from_numpy(kept)])


def merge(content: dict[str, Any], name: str, others: Sequence[str]) -> dict[str, Any]:
    """Merges classes into one: the mean of their unit vectors, under the name and the id of the first.

    Raises:
        ValueError: a name does not belong to exactly one class, a class is named twice, no other is named, or fewer than two
            classes would be left, or the classes have several prototypes.
    """
    classes = classes_of(content)
    _require_one_row(content, "merge")
    labels = [_label(classes, each) for each in (name, *others)]
    if len(set(labels)) < len(labels) or not others:
        raise ValueError(f"merging {', '.join((name, *others))}: expected two different classes or more")
    rows = _rows(content).clone()
    rows[labels[0]] = F.normalize(F.normalize(rows[labels], dim=-1).mean(0), dim=-1)
    kept = np.array([label for label in range(len(classes)) if label not in labels[1:]])
    if len(kept) < 2:
        raise ValueError(f"merging {len(labels)} of {len(classes)} classes leaves {len(kept)}: expected at least 2")
    joined = [name for label in labels[1:] for name in (classes.names[label], *classes.also_called(label))]
    names = [classes.also_called(label) + joined * (label == labels[0]) for label in range(len(classes))]
    left = dataclasses.replace(classes, other_names=names).take(kept)
    return _changed(content, left, rows[torch.from_numpy(kept)])


def add(content: dict[str, Any], examples: Mapping[str, Sequence[Example]], *, fit: bool = False) -> dict[str, Any]:
    """Adds classes from example images: a class's vector, or each of its prototypes, is the mean unit embedding of marked pixels.

    Args:
        content: content of a checkpoint with an embedding head.
        examples: for the name of each new class, pairs of an image and a mask of the same size, whose nonzero pixels mark the
            class. Its id is the highest id plus 1.
        fit: whether to fit the new rows, and nothing else, to the examples (`kiloseg.inference.row_fitting`), starting with
            the mean.

    Raises:
        ValueError: a class of that name exists, there are no examples, or an example is empty, has a mask of another size or
            cannot be read, or rows of classes with several prototypes are to be fitted.
    """
    if fit:
        _require_one_row(content, "add --fit")
    for name, pairs in examples.items():
        _check_new(classes_of(content), name)
        if not pairs:
            raise ValueError(f"class {name!r} needs at least one example: an image and its mask")
    segmenter, _ = segmenter_of(content)
    _rows(content)  # so that a head without one is refused before the examples are read
    every = iter(embed_examples(segmenter, [pair for pairs in examples.values() for pair in pairs]))
    embedded = {name: [next(every) for _ in pairs] for name, pairs in examples.items()}
    return add_embedded(content, embedded, head=segmenter.head, fit=fit)


def add_embedded(
    content: dict[str, Any], embedded: Mapping[str, Sequence[Embedded]], *, head: Head, fit: bool = False
) -> dict[str, Any]:
    """Does the same as `add` with examples that were embedded already, by the network to which `head` belongs.

    Raises:
        ValueError: a class of that name exists, or rows of classes with several prototypes are to be fitted.
    """
    classes = classes_of(content)
    for name in embedded:
        _check_new(classes, name)
    rows = _rows(content)
    # Each example has the same weight, regardless of the object's size.
    means = [torch.stack([one.mean for one in each]).sum(0) for each in embedded.values()]
    new_ND = F.normalize(torch.stack(means), dim=1).float()
    if fit:
        _require_one_row(content, "add --fit")
        new_ND = _fitted(head, new_ND, list(embedded.values()))
    new = new_ND if rows.dim() == 2 else new_ND[:, None].expand(-1, rows.shape[1], -1)
    added = list(embedded)
    highest = int(classes.ids.max())
    more = dataclasses.replace(
        classes,
        names=[*classes.names, *added],
        ids=np.append(classes.ids, np.arange(highest + 1, highest + 1 + len(added))),
        train_samples=None
        if classes.train_samples is None
        else np.append(classes.train_samples, [len(each) for each in embedded.values()]),
        other_names=[*classes.other_names, *([] for _ in added)] if classes.other_names else [],
        removed=[name for name in classes.removed if name not in embedded],
        groups=None if classes.groups is None else [*classes.groups, *([] for _ in added)],
    )
    return _changed(content, more, torch.cat([rows, new.to(rows.dtype)]))


def _fitted(head: Head, means_ND: Tensor, embedded: Sequence[Sequence[Embedded]]) -> Tensor:
    """Fits the new rows together; the rows of the table stay as they are."""
    assert head.table is not None
    inside, outside = (
        [torch.cat([getattr(one, name) for one in each]) for each in embedded] for name in ("inside", "outside")
    )
    shares = [[one.share for one in each] for each in embedded]
    rows_CD = F.normalize(head.table().detach().float(), dim=1)
    return fit_rows(means_ND, rows_CD, inside, outside, shares=shares, loss=head.settings)


def annotate(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns the content with other fields of its classes (`ModelClasses`), such as groups; the classes stay the same."""
    record = dataclasses.replace(classes_of(content), **changes).record()
    return {key: value for key, value in content.items() if key != "optimizer"} | {"classes": record}


def neighbors(content: dict[str, Any], count: int) -> list[list[tuple[int, float]]]:
    """Returns, for each class, the labels of the nearest other classes and their cosines, the nearest first.

    It works in tiles of classes, so that no C x C matrix exists.
    """
    rows_CD = F.normalize(class_table(content).float(), dim=1)
    count = min(count, len(rows_CD) - 1)
    found = []
    for tile in tiles(len(rows_CD), tile_pixels(len(rows_CD), rows_CD)):
        cosine_cC = rows_CD[tile] @ rows_CD.T
        cosine_cC[torch.arange(len(cosine_cC)), torch.arange(tile.start, tile.stop)] = -2
        best = cosine_cC.topk(count, dim=1)
        found += [
            list(zip(labels, cosines, strict=True))
            for labels, cosines in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
    return found


def class_table(content: dict[str, Any]) -> Tensor:
    """Returns the class table (C, D) of a checkpoint's content, of several prototypes their mean direction.

    Raises:
        ValueError: its head has no table.
    """
    rows = _rows(content)
    return rows if rows.dim() == 2 else F.normalize(rows.mean(1), dim=1)


def has_table(content: dict[str, Any]) -> bool:
    """Returns whether the head of a checkpoint's content has a class table."""
    return any(name in content["model"] for name in TABLES)


def _rows(content: dict[str, Any]) -> Tensor:
    """Returns the table as it is stored, (C, D) or (C, k, D). Raises ValueError if the head has none."""
    for name in TABLES:
        if name in content["model"]:
            return content["model"][name]
    raise ValueError(
        f"{content['location']} has no class table (model.head = {content['config'].get('model.head')!r}): expected a model with "
        "an embedding head"
    )


def _require_one_row(content: dict[str, Any], action: str) -> None:
    """Raises ValueError if classes have several prototypes."""
    prototypes = content["model"][PROTOTYPES].shape[1] if PROTOTYPES in content["model"] else 1
    if prototypes > 1:
        raise ValueError(
            f"{content['location']} has {prototypes} prototypes a class, and {action} takes one vector a class: train it with "
            "model.prototypes = 1"
        )


def _changed(content: dict[str, Any], classes: ModelClasses, rows: Tensor) -> dict[str, Any]:
    """Returns the content with these classes and the rows of their embeddings, as they are stored."""
    (name,) = (name for name in TABLES if name in content["model"])
    model = {**content["model"], name: rows.clone()}
    left = {key: value for key, value in content.items() if key not in ("optimizer", "location")}
    record = dataclasses.replace(classes, edited=True).record()
    return {**left, "model": model, "num_classes": len(classes), "classes": record}


def _label(classes: ModelClasses, name: str) -> int:
    found = [label for label, each in enumerate(classes.names) if each == name]
    if len(found) != 1:
        raise ValueError(
            f"{len(found) or 'no'} classes are called {name!r}: expected one; `kiloseg classes SOURCE list` prints all names"
        )
    return found[0]


def _check_new(classes: ModelClasses, name: str) -> None:
    if not name or name in classes.names:
        raise ValueError(f"a class called {name!r} exists already" if name else "the new name is empty")
