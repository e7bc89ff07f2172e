"""Describes the classes of a trained model: their names, their ids and the data that they were trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kiloseg.config import Data
from kiloseg.data.classes import ClassRecord, record_classes
from kiloseg.plotting import class_colors


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelClasses:
    """The classes that labels 0 to C - 1 of a model stand for."""

    ids: np.ndarray
    """Ids of the classes in the data set: int64 of shape (C,)."""
    names: list[str]
    background: int | None = None
    """Label of the background class; None if there is none."""
    train_samples: np.ndarray | None = None
    """Number of training samples that contain each class: int64 of shape (C,). None if it is not known."""
    data: str = ""
    """Name of the data set; empty if it is not known."""
    digest: str = ""
    """Digest of the data set, as in dataset.json; empty if it is not known."""
    other_names: list[list[str]] = field(default_factory=list)
    """Other names of each class: earlier ones, and those of classes that were merged into it. Empty if no class has any."""
    removed: list[str] = field(default_factory=list)
    """Names of the classes that were removed after training."""
    edited: bool = False
    """Whether classes were changed after training, so that they need not be those of the data set."""
    groups: list[list[str]] | None = None
    """The groups that each class belongs to, the largest group first (`kiloseg.inference.groups`); None if there are none."""
    known_from: float | None = None
    """Pixels with a lower familiarity show none of the classes, see `kiloseg.inference.unknown`; None if not calibrated."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def colors(self) -> np.ndarray:
        """Colors of the classes, uint8 of shape (C, 3): distinct for neighboring ids, and independent of the other classes."""
        background = None if self.background is None else int(self.ids[self.background])
        return class_colors(int(self.ids.max(initial=0)) + 1, background)[self.ids]

    @classmethod
    def from_record(cls, record: ClassRecord) -> ModelClasses:
        """Creates the classes from the record in a checkpoint."""
        samples = record["train_samples"]
        return cls(
            ids=np.asarray(record["ids"], dtype=np.int64),
            names=list(record["names"]),
            background=record["background"],
            train_samples=None if samples is None else np.asarray(samples, dtype=np.int64),
            data=record["data"],
            digest=record["digest"],
            other_names=[list(names) for names in record.get("other_names", [])],
            removed=list(record.get("removed", [])),
            edited=record.get("edited", False),
            groups=record.get("groups"),
            known_from=record.get("known_from"),
        )

    def record(self) -> ClassRecord:
        """Returns the record that a checkpoint stores; `from_record` reads it."""
        return {
            "ids": self.ids.tolist(),
            "names": self.names,
            "background": self.background,
            "train_samples": None if self.train_samples is None else self.train_samples.tolist(),
            "data": self.data,
            "digest": self.digest,
            "other_names": self.other_names,
            "removed": self.removed,
            "edited": self.edited,
            "groups": self.groups,
            "known_from": self.known_from,
        }

    def also_called(self, label: int) -> list[str]:
        """Returns the other names of a class: earlier ones, and those of classes that were merged into it."""
        return self.other_names[label] if self.other_names else []

    def take(self, labels: Sequence[int] | np.ndarray, **changes: Any) -> ModelClasses:
        """Returns the classes with these labels, in ascending order, and then with fields replaced by `changes`."""
        kept = np.asarray(labels, dtype=np.int64)
        background = None
        if self.background is not None and self.background in kept:
            background = int(np.searchsorted(kept, self.background))
        chosen = dataclasses.replace(
            self,
            ids=self.ids[kept],
            names=[self.names[label] for label in kept],
            background=background,
            train_samples=None if self.train_samples is None else self.train_samples[kept],
            other_names=[self.other_names[label] for label in kept] if self.other_names else [],
            groups=None if self.groups is None else [self.groups[label] for label in kept],
        )
        return dataclasses.replace(chosen, **changes)

    @classmethod
    def of_data(cls, data: Data) -> ModelClasses:
        """Returns the classes of a run on the data set at `data.path`.

        Raises:
            DataError: the data set is missing or damaged.
        """
        return cls.from_record(record_classes(data))

    @classmethod
    def unnamed(cls, num_classes: int) -> ModelClasses:
        """Returns classes whose names are not known and that are called by their numbers."""
        return cls(ids=np.arange(num_classes), names=[f"class {number}" for number in range(num_classes)])
