"""The settings of a run, as frozen dataclasses.

Every setting is defined once, here. Command lines (tyro), searches (`overrides.override`) and MLflow parameters
(`overrides.flatten`) are views of these definitions. A value that cannot work is rejected when the config is created, and
the message says how to fix it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from kiloseg.config.checks import require
from kiloseg.config.data import Data, OtherClasses
from kiloseg.config.heads import HEADS, HeadSettings
from kiloseg.config.loss import Logit, Loss, Negatives, NegativesKind
from kiloseg.config.model import Head, Model
from kiloseg.config.training import Optimizer, OptimizerName, Precision, Trainer

__all__ = [
    "HEADS",
    "Config",
    "Data",
    "Head",
    "HeadSettings",
    "Logit",
    "Loss",
    "Model",
    "Negatives",
    "NegativesKind",
    "Optimizer",
    "OptimizerName",
    "OtherClasses",
    "Precision",
    "Trainer",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings that determine the result of a run."""

    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    trainer: Trainer = field(default_factory=Trainer)

    def __post_init__(self) -> None:
        if self.data.num_classes is not None and self.model.head != "dense":
            self.loss.negatives.check_classes(self.data.num_classes)
        for name, needed in HEADS[self.model.head].required.items():
            value = functools.reduce(getattr, name.split("."), self)
            require(value == needed, name, value, f"{needed!r} for model.head = {self.model.head!r}")
        require(
            self.optimizer.warmup_steps < self.trainer.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"less than trainer.steps = {self.trainer.steps}",
        )
