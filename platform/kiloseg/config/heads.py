"""Names the heads and the settings that belong to each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """Settings, by dotted name, that belong to a head; choosing the head on a command line sets them all."""

    required: dict[str, Any] = field(default_factory=dict)
    """Values that the head needs; a run with this head and any other value is rejected."""
    usual: dict[str, Any] = field(default_factory=dict)
    """Values that the head normally uses; a run may choose others."""


HEADS = {
    "embedding": HeadSettings(),
    "dense": HeadSettings(),
    "official": HeadSettings(
        required={"loss.negatives.kind": "nearest", "loss.logit": "distance"},
        usual={"model.normalize_early": True, "loss.separation_weight": 1.0},
    ),
    # Prototypes get no gradient, so nothing can keep them apart.
    "prototype": HeadSettings(
        required={"loss.negatives.kind": "all", "loss.logit": "cosine", "loss.separation_weight": 0.0}
    ),
}
"""Every head by the name that `model.head` and command lines use. `kiloseg.models.register_head` adds your own."""
