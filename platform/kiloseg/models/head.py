"""Defines what a head is, and the registry of heads.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, N channels of the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from kiloseg.config import HEADS, HeadSettings, Loss, Model
from kiloseg.models.class_table import ClassTable, PrototypeTable


class HeadLoss(NamedTuple):
    """Holds the two parts of the training loss. Only the first must be averaged over labeled pixels of all workers."""

    cross_entropy: Tensor
    """A scalar: the mean over labeled pixels; 0, with zero gradients, if no pixel is labeled."""
    regularizer: Tensor | None
    """A scalar that does not depend on the batch, already multiplied by its weight; None if there is none."""


class Prediction(NamedTuple):
    """Holds the class of every pixel at full resolution and its confidence."""

    labels: Tensor
    """The class of every pixel: int64 (B, H, W)."""
    confidence: Tensor
    """float32 (B, H, W): the probability of the class against only the second best, 0.5 to 1. NaN if a head has none."""


class Candidates(NamedTuple):
    """Holds the K best classes of every pixel at full resolution."""

    labels: Tensor
    """The classes, best first: int64 (K, B, H, W)."""
    logits: Tensor
    """float32 (K, B, H, W): the logits of these classes, as the loss sees them."""
    familiarity: Tensor
    """float32 (B, H, W): how well the pixel fits the classes of training; higher is better. The cosine of the nearest class, or
    the probability of the best class for the dense head."""


class Head(ABC, nn.Module):
    """Base class of all heads. Calling a head with the network's outputs returns the input of `loss` and `predict`.

    Args:
        model: the settings of the model.
        loss: the settings of the head's loss.
        num_classes: the number of classes C.

    Raises:
        ValueError: the settings cannot work with this many classes.
    """

    table: ClassTable | PrototypeTable | None
    """The table with the embeddings of every class, or None for heads that have no table. Calling it returns the rows."""
    rows_per_class: int = 1
    """The number of rows of each class in the table; those of a class follow each other."""
    ranks = False
    """Whether `candidates` can return more than one class."""

    takes_class_weights = False
    """Whether the loss uses `class_weights_C`. A head whose loss does sets this to True."""

    class_weights_C: Tensor | None
    """float32 of shape (C,), or None if all classes count the same; see `weigh_classes`."""

    def __init__(self, model: Model, loss: Loss, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.settings = loss
        self.table = None
        # Not part of checkpoints, since it follows from the settings.
        self.register_buffer("class_weights_C", None, persistent=False)

    @staticmethod
    @abstractmethod
    def num_outputs(model: Model, num_classes: int) -> int:
        """Returns the number of channels N that the network must output."""

    def forward(self, outputs_BNhw: Tensor) -> Tensor:
        """Returns the network's outputs in the form that the head uses."""
        return outputs_BNhw

    @abstractmethod
    def loss(self, outputs_BNhw: Tensor, labels_BHW: Tensor) -> HeadLoss:
        """Computes the loss of a batch.

        Args:
            outputs_BNhw: the value that calling the head returned.
            labels_BHW: int64, 0 to C - 1, or -1 for ignore, at full resolution.
        """

    @abstractmethod
    def predict(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Predicts the class of every pixel at full resolution, without a graph: int64 of shape (B, *size)."""

    def predict_confidence(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Prediction:
        """Does the same as `predict` and adds confidences, which are NaN for heads that do not provide them."""
        labels_BHW = self.predict(outputs_BNhw, size)
        return Prediction(labels_BHW, torch.full(labels_BHW.shape, torch.nan, device=labels_BHW.device))

    def candidates(self, outputs_BNhw: Tensor, size: tuple[int, int], count: int) -> Candidates:
        """Finds the `count` best classes of every pixel, without a graph: 1 to C of them, or 1 if `ranks` is False.

        Logits and familiarity are NaN for heads that do not rank classes.

        Raises:
            ValueError: the head does not rank classes, and `count` is not 1.
        """
        if count != 1:
            raise ValueError(f"{type(self).__name__} predicts only the best class of a pixel, not {count} classes")
        labels_BHW = self.predict(outputs_BNhw, size)
        unknown_BHW = torch.full(labels_BHW.shape, torch.nan, device=labels_BHW.device)
        return Candidates(labels_BHW[None], unknown_BHW[None], unknown_BHW)

    def weigh_classes(self, weights_C: Tensor | None) -> None:
        """Sets the weights of classes in the mean over pixels, on the device of the head; None: all count the same.

        Raises:
            ValueError: the loss of this head uses no class weights.
        """
        if weights_C is not None and not self.takes_class_weights:
            raise ValueError(
                f"loss.class_weights = {self.settings.class_weights!r}: head {type(self).__name__} uses no class weights; choose "
                "none, or another model.head"
            )
        self.class_weights_C = weights_C

    def total_weight(self, labels_BHW: Tensor) -> Tensor:
        """Returns the number of labeled pixels, or the sum of their class weights if there are any, as a float32 scalar."""
        known_BHW = labels_BHW >= 0
        if self.class_weights_C is None:
            return known_BHW.sum().float()
        return self.class_weights_C[labels_BHW.clamp(min=0)].mul_(known_BHW).sum()

    def finish_step(self) -> None:
        """Updates what is not learned by gradient, after an optimization step. Every worker calls this."""
        return None

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Returns parameters of more than one dimension that are exempt from weight decay."""
        return () if self.table is None else self.table.parameters()


HeadT = TypeVar("HeadT", bound=type[Head])

_CLASSES: dict[str, type[Head]] = {}


def register_head(name: str, settings: HeadSettings | None = None) -> Callable[[HeadT], HeadT]:
    """Registers a class as the head that `model.head = name` selects.

    Args:
        name: a name that no other head has.
        settings: other settings that belong to the head.

    Raises:
        ValueError: there is already a head with that name.
    """
    if name in _CLASSES:
        raise ValueError(f"a head called {name!r} exists already ({_CLASSES[name].__name__}); choose another name")

    def register(head: HeadT) -> HeadT:
        HEADS.setdefault(name, settings or HeadSettings())
        _CLASSES[name] = head
        return head

    return register


def head_class(name: str) -> type[Head]:
    """Returns the class that `model.head = name` selects."""
    return _CLASSES[name]
