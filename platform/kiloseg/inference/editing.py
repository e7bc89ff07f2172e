"""Changes the classes of a trained model without training, by editing the rows of its class table.

Each function takes the content of a checkpoint (`kiloseg.inference.loading.content_of`) and returns a new one without the
optimizer's state: a changed model can predict, but cannot continue training.

Shapes: C classes, D embedding, H W pixels, P pixels of an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.images import as_pixels
from kiloseg.inference.loading import classes_of
from kiloseg.training.evaluation import segmenter_of

TABLES = ("head.table.rows_CD", "table.rows_CD")
"""Names of the class table in a checkpoint; the second is used by checkpoints from before the package had heads."""
MAX_EXAMPLE_SIDE = 1024
"""Longest side of an example, in pixels; larger examples are scaled down."""


def rename(content: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Renames one class.

    Raises:
        ValueError: not exactly one class is called `old`, one is already called `new`, or `new` is empty.
    """
    classes = classes_of(content)
    _check_new(classes, new)
    label = _label(classes, old)
    names = [new if number == label else name for number, name in enumerate(classes.names)]
    return _changed(content, classes, names=names)


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
    return _changed(content, classes, kept=kept)


def merge(content: dict[str, Any], name: str, others: Sequence[str]) -> dict[str, Any]:
    """Merges classes into one: the mean of their unit vectors, under the name and the id of the first.

    Raises:
        ValueError: a name does not belong to exactly one class, a class is named twice, no other is named, or fewer than two
            classes would be left.
    """
    classes = classes_of(content)
    labels = [_label(classes, each) for each in (name, *others)]
    if len(set(labels)) < len(labels) or not others:
        raise ValueError(f"merging {', '.join((name, *others))}: expected two different classes or more")
    rows_CD = _table(content).clone()
    rows_CD[labels[0]] = F.normalize(F.normalize(rows_CD[labels], dim=1).mean(0), dim=0)
    kept = np.array([label for label in range(len(classes)) if label not in labels[1:]])
    if len(kept) < 2:
        raise ValueError(f"merging {len(labels)} of {len(classes)} classes leaves {len(kept)}: expected at least 2")
    return _changed(content, classes, rows_CD=rows_CD, kept=kept)


def add(content: dict[str, Any], name: str, examples: Sequence[tuple[Path | str, Path | str]]) -> dict[str, Any]:
    """Adds a class from example images: its vector is the mean unit embedding of the marked pixels.

    Args:
        content: content of a checkpoint with an embedding head.
        name: name of the new class; its id is the highest id plus 1.
        examples: pairs of an image and a mask of the same size, whose nonzero pixels mark the class.

    Raises:
        ValueError: a class of that name exists, there are no examples, or an example is empty, has a mask of another size or
            cannot be read.
    """
    classes = classes_of(content)
    _check_new(classes, name)
    if not examples:
        raise ValueError(f"class {name!r} needs at least one example: an image and its mask")
    rows_CD = _table(content)
    segmenter, _ = segmenter_of(content)
    total_D = torch.zeros(rows_CD.shape[1], dtype=torch.float64)
    for image, mask in examples:
        # Each example has the same weight, regardless of the object's size.
        total_D += _mean_embedding(segmenter, image, mask)
    row_1D = F.normalize(total_D, dim=0).to(rows_CD.dtype)[None]
    samples = None if classes.train_samples is None else np.append(classes.train_samples, len(examples))
    return _changed(
        content,
        classes,
        rows_CD=torch.cat([rows_CD, row_1D]),
        names=[*classes.names, name],
        ids=np.append(classes.ids, classes.ids.max() + 1),
        samples=samples,
    )


def neighbours(content: dict[str, Any]) -> list[tuple[int, float]]:
    """Returns, for each class, the label of the nearest other class and the cosine of the two."""
    rows_CD = F.normalize(_table(content).float(), dim=1)
    found = []
    for rows_cD, start in zip(rows_CD.split(1024), range(0, len(rows_CD), 1024), strict=True):
        cosine_cC = rows_cD @ rows_CD.T
        cosine_cC[torch.arange(len(rows_cD)), torch.arange(start, start + len(rows_cD))] = -2
        best = cosine_cC.max(dim=1)
        found += list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return found


@torch.no_grad()
def _mean_embedding(segmenter: torch.nn.Module, image: Path | str, mask: Path | str) -> Tensor:
    pixels_HW3 = as_pixels(image)
    try:
        with Image.open(mask) as opened:
            values = np.asarray(opened)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"mask {mask} cannot be read ({error}): expected a PNG with 0 outside of the class") from error
    marked_HW = np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))
    if marked_HW.shape != pixels_HW3.shape[:2]:
        raise ValueError(
            f"mask {mask} is {marked_HW.shape}, its image {image} {pixels_HW3.shape[:2]} (height, width): expected equal sizes"
        )
    if not marked_HW.any():
        raise ValueError(f"mask {mask} is empty: expected pixels other than 0 where the class is")
    shrink = max(max(marked_HW.shape) / MAX_EXAMPLE_SIDE, 1)
    size = tuple(max(round(side / shrink), 1) for side in marked_HW.shape)
    images = torch.from_numpy(np.asarray(Image.fromarray(pixels_HW3).resize(size[::-1])).transpose(2, 0, 1).copy())[
        None
    ]
    images = F.pad(images, (0, -size[1] % 32, 0, -size[0] % 32))
    outputs_BDhw = segmenter(images).float()
    pixels_BDHW = F.interpolate(outputs_BDhw, size=images.shape[2:], mode="bilinear", align_corners=False)
    marked = torch.from_numpy(np.array(Image.fromarray(marked_HW).resize(size[::-1], Image.Resampling.NEAREST)))
    if not marked.any():
        raise ValueError(f"mask {mask} marks too little to be seen at {size} pixels: expected a larger object")
    pixels_DP = pixels_BDHW[0, :, : size[0], : size[1]][:, marked]
    return F.normalize(F.normalize(pixels_DP.double(), dim=0).mean(1), dim=0)


def _table(content: dict[str, Any]) -> Tensor:
    for name in TABLES:
        if name in content["model"]:
            return content["model"][name]
    raise ValueError(
        f"{content['location']} has no class table (model.head = {content['config'].get('model.head')!r}): expected a model with "
        "an embedding head"
    )


def _changed(
    content: dict[str, Any],
    classes: ModelClasses,
    *,
    rows_CD: Tensor | None = None,
    kept: np.ndarray | None = None,
    names: list[str] | None = None,
    ids: np.ndarray | None = None,
    samples: np.ndarray | None = None,
) -> dict[str, Any]:
    """Returns the content with new rows, names, ids and samples, reduced to the labels in `kept`."""
    table_CD = _table(content) if rows_CD is None else rows_CD
    names = classes.names if names is None else names
    ids = classes.ids if ids is None else ids
    samples = classes.train_samples if samples is None else samples
    kept = np.arange(len(names)) if kept is None else kept
    background = None
    if classes.background is not None and classes.background in kept:
        background = int(np.searchsorted(kept, classes.background))
    made = ModelClasses(
        ids=ids[kept],
        names=[names[label] for label in kept],
        background=background,
        train_samples=None if samples is None else samples[kept],
        data=classes.data,
        digest=classes.digest,
    )
    (name,) = (name for name in TABLES if name in content["model"])
    model = {**content["model"], name: table_CD[torch.from_numpy(kept)].clone()}
    left = {key: value for key, value in content.items() if key not in ("optimizer", "location")}
    return {**left, "model": model, "num_classes": len(kept), "classes": made.record()}


def _label(classes: ModelClasses, name: str) -> int:
    found = [label for label, each in enumerate(classes.names) if each == name]
    if len(found) != 1:
        raise ValueError(
            f"{len(found) or 'no'} classes are called {name!r}: expected one; `kiloseg classes SOURCE list` prints all"
        )
    return found[0]


def _check_new(classes: ModelClasses, name: str) -> None:
    if not name or name in classes.names:
        raise ValueError(f"a class is called {name!r} already" if name else "the new name is empty")
