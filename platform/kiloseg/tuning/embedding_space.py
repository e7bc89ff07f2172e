"""The space of a pixel embedding (dimension, negatives, temperature, logit, learning rate) and trials known to work in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kiloseg.config import Config, NegativesKind
from kiloseg.tuning.space import COUNT, KIND, OF_EMBEDDING, Space, choice, log, negatives

EMBED_DIMS = (8, 16, 32, 64, 128)
"""The embedding dimensions to choose from."""
KINDS: tuple[NegativesKind, ...] = ("all", "nearest", "random", "mixed")
"""The kinds of negatives to choose from."""
DIM = "model.embed_dim"


def embedding_space(
    base: Config, num_classes: int, *, embed_dims: Sequence[int] = EMBED_DIMS, kinds: Sequence[NegativesKind] = KINDS
) -> Space:
    """Returns the space that is searched for a data set.

    Args:
        base: the run that trials vary; learning rates reach from a third to three times its own.
        num_classes: the number of classes C, up to which negatives are counted. Kinds of negatives for which there are too few
            classes are left out.
        embed_dims: the embedding dimensions to choose from.
        kinds: the kinds of negatives to choose from.
    """
    return Space(
        base,
        (
            choice(DIM, embed_dims),
            *negatives(kinds, num_classes),
            log("loss.temperature", 5.0, 80.0, when=OF_EMBEDDING),
            choice("loss.logit", ("distance", "cosine"), when=OF_EMBEDDING),
            log("optimizer.lr", base.optimizer.lr / 3, base.optimizer.lr * 3),
        ),
    )


def known_trials(
    base: Config, num_classes: int, *, embed_dims: Sequence[int] = EMBED_DIMS, kinds: Sequence[NegativesKind] = KINDS
) -> list[dict[str, Any]]:
    """Returns settings to try first, by dotted names: the exact softmax and the paper's choice of negatives and logits.

    The paper has 12 dimensions, for which the nearest of `embed_dims` stands, 7 nearest negatives, temperature 20 and distance
    logits (https://arxiv.org/abs/2012.07489).

    Args:
        base: as for `embedding_space`; the trials have its learning rate.
        num_classes: as for `embedding_space`.
        embed_dims: as for `embedding_space`.
        kinds: as for `embedding_space`; there is no trial of a kind that is not among them.
    """
    shared: dict[str, Any] = {
        DIM: min(embed_dims, key=lambda dim: (abs(dim - 12), -dim)),
        "loss.temperature": 20.0,
        "optimizer.lr": base.optimizer.lr,
    }
    trials: dict[str, dict[str, Any]] = {
        "all": {"loss.logit": "cosine"},
        "nearest": {COUNT: min(7, num_classes - 1), "loss.logit": "distance"},
    }
    return [shared | {KIND: kind} | trial for kind, trial in trials.items() if kind in kinds]
