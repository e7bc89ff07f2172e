"""This package measures and plans memory."""

import importlib
from typing import TYPE_CHECKING, Any

from kiloseg.memory.out_of_memory import is_out_of_memory
from kiloseg.memory.peak import GIB, PeakMemory, parse_gib

if TYPE_CHECKING:
    from kiloseg.memory.planner import largest_batch, plan, plan_evaluation

__all__ = ["GIB", "PeakMemory", "is_out_of_memory", "largest_batch", "parse_gib", "plan", "plan_evaluation"]


def __getattr__(name: str) -> Any:
    # The planner builds networks and takes steps, which measure memory themselves, so it is imported only on demand.
    if name in ("largest_batch", "plan", "plan_evaluation"):
        return getattr(importlib.import_module("kiloseg.memory.planner"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
