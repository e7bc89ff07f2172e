"""What a run or a study must have in common with the one that it goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAY_DIFFER = frozenset(
    {
        "data.path",
        "data.cache_gib",
        "data.max_bad_samples",
        "data.val_batch_size",
        "trainer.output",
        "trainer.progress",
        "trainer.keep_checkpoints",
        # A run that ran out of memory may go on with less of it.
        "trainer.checkpoint_activations",
        "trainer.compile",
    }
)
"""Settings that change nothing of what a run computes."""

SHOWN = 5
"""Differences that are named; the others are counted."""


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """Names what is not the same in two runs or studies, both given by dotted names; empty where nothing is.

    Settings that may differ are left out, and what only `then` has: a setting that there is no more.
    """
    changed = [
        f"{name} was {then.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if name not in MAY_DIFFER and value != then.get(name)
    ]
    more = [f"and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return "; ".join(changed[:SHOWN] + more)
