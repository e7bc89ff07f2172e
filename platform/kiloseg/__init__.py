"""Semantic segmentation over thousands of classes on one GPU.

The names below are the public API. Each is imported when it is first used, so `import kiloseg` is fast and does not
import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kiloseg.config import Config, Negatives
    from kiloseg.inference import evaluate, load
    from kiloseg.losses import class_separation, embedding_cross_entropy
    from kiloseg.memory import largest_batch, plan, plan_evaluation
    from kiloseg.metrics import IoU
    from kiloseg.models import Head, Segmenter, nearest_class, nearest_two, register_head
    from kiloseg.overrides import override
    from kiloseg.presets import PRESETS
    from kiloseg.training.loop import train

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Config",
    "Head",
    "IoU",
    "Negatives",
    "Segmenter",
    "class_separation",
    "embedding_cross_entropy",
    "evaluate",
    "largest_batch",
    "load",
    "nearest_class",
    "nearest_two",
    "override",
    "plan",
    "plan_evaluation",
    "register_head",
    "train",
]

_MODULES = {
    "config": ("Config", "Negatives"),
    "inference": ("evaluate", "load"),
    "losses": ("class_separation", "embedding_cross_entropy"),
    "memory": ("largest_batch", "plan", "plan_evaluation"),
    "metrics": ("IoU",),
    "models": ("Head", "Segmenter", "nearest_class", "nearest_two", "register_head"),
    "overrides": ("override",),
    "presets": ("PRESETS",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports the module that a public name lives in (https://peps.python.org/pep-0562/)."""
    if name == "train":  # a module that can be called: `from kiloseg.train import train` works too
        return importlib.import_module("kiloseg.train")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"kiloseg.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
