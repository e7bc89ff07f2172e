"""Defines the report of a run, which training sends every few steps.

A field's "name" is what its value is called in MLflow, in results of Ray and in checkpoints; a "part" has named fields itself;
"names" are endings of names that a field holds with their values.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class PeakReport:
    """Holds the peak memory of a run so far, including the time before a resumption."""

    kind: str = field(metadata={"name": "peak_memory_kind"})
    """The kind of memory that is counted: "cuda_allocated" or "cpu_live_tensors"."""
    training_gib: float = field(metadata={"name": "peak_memory_gib"})
    """Peak of training steps in GiB."""
    prediction_gib: float = field(metadata={"name": "val/peak_memory_gib"})
    """Peak of predicting a validation batch in GiB."""
    reserved_gib: float | None = field(default=None, metadata={"name": "peak_memory_reserved_gib"})
    """Peak in GiB that CUDA's allocator reserved in training steps; None on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Holds the results of a validation."""

    miou: float = field(metadata={"name": "val/miou"})
    """Mean IoU over the classes that occur, from 0 to 1."""
    pixel_accuracy: float = field(metadata={"name": "val/pixel_accuracy"})
    """Share of labeled pixels that are predicted correctly, from 0 to 1."""
    iou_per_class: list[float] = field(metadata={"name": "val/iou_per_class"})
    """C values from 0 to 1, or NaN for classes that occur neither in labels nor in predictions."""
    peaks: PeakReport = field(metadata={"part": PeakReport})
    other_splits: dict[str, float] = field(default_factory=dict, metadata={"names": ("/miou", "/pixel_accuracy")})
    """Mean IoU and pixel accuracy of further splits in `data.val_splits`, by names such as "val_style/miou"."""
    num_bad_samples: int | None = field(default=None, metadata={"name": "train/bad_samples"})
    """Number of training samples left out so far; None if `data.max_bad_samples` is 0."""
    bad_samples: list[str] | None = field(default=None, metadata={"name": "bad_samples"})
    """A message for each of them that says what was wrong."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Report(Mapping[str, Any]):
    """Holds the measurements of a run since the last report.

    As a mapping it has the same values by their names in MLflow ("train/loss", "val/miou", ...), including those of its
    validation, without values that are None.
    """

    step: int = field(metadata={"name": "step"})
    """Number of optimization steps taken."""
    epoch: float = field(metadata={"name": "epoch"})
    """Number of passes over the training split so far."""
    loss: float = field(metadata={"name": "train/loss"})
    """Mean cross-entropy of the steps since the last report, over all workers."""
    images_per_s: float = field(metadata={"name": "train/images_per_s"})
    """Training speed so far in images per second, over all workers, without validation."""
    lr: float = field(metadata={"name": "train/lr"})
    """Learning rate of the decoder and the class table in the last step."""
    validation: Validation | None = field(default=None, metadata={"part": Validation})
    """Results of the validation; None in reports without one."""
    checkpoint: str | None = field(default=None, metadata={"name": "checkpoint"})
    """Path or URL of the checkpoint that was just written; only at validations and only from rank 0."""

    @staticmethod
    def from_names(values: Mapping[str, Any]) -> Report | None:
        """Returns the report that equals `values` as a mapping; None if they are empty. Ignores names that no report has."""
        report: Report | None = _from_names(Report, values)
        return report

    def numbers(self) -> dict[str, int | float]:
        """Returns its numbers by their names in MLflow, including "step", without texts and lists."""
        return {name: value for name, value in self.items() if isinstance(value, int | float)}

    @functools.cached_property
    def _by_name(self) -> dict[str, Any]:
        return dict(_names(self))

    def __getitem__(self, name: str) -> Any:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def _names(part: Any) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(part):
        value = getattr(part, item.name)
        if value is None:
            continue
        if "part" in item.metadata:
            yield from _names(value)
        elif "names" in item.metadata:
            yield from value.items()
        else:
            yield item.metadata["name"], value


def _from_names(kind: Any, values: Mapping[str, Any]) -> Any:
    """Returns an instance of `kind`, or None if `values` has none of its own names."""
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        if "part" in item.metadata:
            arguments[item.name] = _from_names(item.metadata["part"], values)
        elif "names" in item.metadata:
            own = {other.metadata.get("name") for other in dataclasses.fields(kind)}
            found = {name: values[name] for name in values if name.endswith(item.metadata["names"]) and name not in own}
            arguments |= {item.name: found} if found else {}
        elif item.metadata["name"] in values:
            arguments[item.name] = values[item.metadata["name"]]
    return kind(**arguments) if any(value is not None for value in arguments.values()) else None
