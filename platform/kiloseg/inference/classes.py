"""What the classes of a trained model are called, and what they were trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kiloseg.config import Data
from kiloseg.data.classes import ClassRecord, record_classes
from kiloseg.plotting import class_colors


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelClasses:
    """What labels 0 to C - 1 of a model stand for."""

    ids: np.ndarray
    """Their ids in the data set: int64 of shape (C,)."""
    names: list[str]
    background: int | None = None
    """The label of the background, if there is one."""
    train_samples: np.ndarray | None = None
    """How many training samples hold each class: int64 of shape (C,). None where nobody knows any more."""
    data: str = ""
    """Name of the data set."""
    digest: str = ""
    """Of the data set, as dataset.json has it."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def colors(self) -> np.ndarray:
        """uint8 of shape (C, 3): far apart for neighbouring ids, and the same for a class whatever else the model has."""
        background = None if self.background is None else int(self.ids[self.background])
        return class_colors(int(self.ids.max(initial=0)) + 1, background)[self.ids]

    @classmethod
    def from_record(cls, record: ClassRecord) -> ModelClasses:
        """The classes that a checkpoint says it has."""
        samples = record["train_samples"]
        return cls(
            ids=np.asarray(record["ids"], dtype=np.int64),
            names=list(record["names"]),
            background=record["background"],
            train_samples=None if samples is None else np.asarray(samples, dtype=np.int64),
            data=record["data"],
            digest=record["digest"],
        )

    def record(self) -> ClassRecord:
        """What a checkpoint keeps; `from_record` reads it."""
        return {
            "ids": self.ids.tolist(),
            "names": self.names,
            "background": self.background,
            "train_samples": None if self.train_samples is None else self.train_samples.tolist(),
            "data": self.data,
            "digest": self.digest,
        }

    @classmethod
    def of_data(cls, data: Data) -> ModelClasses:
        """The classes of a run on the data set at `data.path`.

        Raises:
            DataError: it is not there, or damaged.
        """
        return cls.from_record(record_classes(data))

    @classmethod
    def unnamed(cls, num_classes: int) -> ModelClasses:
        """Classes that nobody can name any more, called by their numbers."""
        return cls(ids=np.arange(num_classes), names=[f"class {number}" for number in range(num_classes)])
