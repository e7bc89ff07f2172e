"""The space of a pixel embedding (dimension, negatives, temperature, logit, learning rate) and trials known to work in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kiloseg.config import Config, NegativesKind
from kiloseg.config.sizes import auto_embed_dim, auto_negatives
from kiloseg.tuning.space import COUNT, KIND, OF_EMBEDDING, Space, choice, log, negatives

KINDS: tuple[NegativesKind, ...] = ("all", "nearest", "random", "mixed")
"""The kinds of negatives to choose from."""
DIM = "model.embed_dim"


def embed_dims(num_classes: int) -> tuple[int, ...]:
    """Returns the embedding dimensions to choose from: up to five powers of two around that of "auto", at least 4."""
    middle = round(math.log2(auto_embed_dim(num_classes)))
    return tuple(2**power for power in range(max(middle - 2, 2), middle + 3))


def embedding_space(
    base: Config, num_classes: int, *, dims: Sequence[int] = (), kinds: Sequence[NegativesKind] = KINDS
) -> Space:
    """Returns the space that is searched for a data set.

    Args:
        base: the run that trials vary; learning rates reach from a third to three times its own.
        num_classes: the number of classes C, up to which negatives are counted. Kinds of negatives for which there are too few
            classes are left out.
        dims: the embedding dimensions to choose from; none: those of `embed_dims`.
        kinds: the kinds of negatives to choose from.
    """
    return Space(
        base,
        (
            choice(DIM, dims or embed_dims(num_classes)),
            *negatives(kinds, num_classes),
            log("loss.temperature", 5.0, 80.0, when=OF_EMBEDDING),
            choice("loss.logit", ("distance", "cosine"), when=OF_EMBEDDING),
            log("optimizer.lr", base.optimizer.lr / 3, base.optimizer.lr * 3),
        ),
    )


def known_trials(
    base: Config, num_classes: int, *, dims: Sequence[int] = (), kinds: Sequence[NegativesKind] = KINDS
) -> list[dict[str, Any]]:
    """Returns settings to try first, by dotted names: what the rule of "auto" suggests, and the paper's choice.

    The rule's embedding dimension is tried with the exact softmax, and with as many random negatives as it suggests if those are
    less than half of the classes. The paper has 12 dimensions, 7 nearest negatives, temperature 20 and distance logits
    (https://arxiv.org/abs/2012.07489). For a dimension that is not to choose from stands the nearest one.

    Args:
        base: as for `embedding_space`; the trials have its learning rate.
        num_classes: as for `embedding_space`.
        dims: as for `embedding_space`.
        kinds: as for `embedding_space`; there is no trial of a kind that is not among them.
    """
    choices = dims or embed_dims(num_classes)
    shared: dict[str, Any] = {"loss.temperature": 20.0, "optimizer.lr": base.optimizer.lr}
    ruled = {DIM: _nearest(choices, auto_embed_dim(num_classes)), "loss.logit": "cosine"}
    paper = {DIM: _nearest(choices, 12), "loss.logit": "distance", COUNT: min(7, num_classes - 1)}
    few = auto_negatives(num_classes, "random")
    trials: list[dict[str, Any]] = [{KIND: "all"} | ruled]
    if few < num_classes / 2:
        trials.append({KIND: "random", COUNT: few} | ruled)
    trials.append({KIND: "nearest"} | paper)
    return [shared | trial for trial in trials if trial[KIND] in kinds]


def _nearest(choices: Sequence[int], wanted: int) -> int:
    """Returns the choice that is nearest to a number of dimensions, the larger of two."""
    return min(choices, key=lambda dim: (abs(dim - wanted), -dim))
