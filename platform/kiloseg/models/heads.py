"""Heads: what a network's outputs mean, how they are trained, and which class they stand for.

A head is one object. It says how many channels the network has to give, holds the class table if it has one, and has the
loss and the prediction; nothing outside of this file tells heads apart. A new head is a class here (or in a file of one's
own) under `@register_head`, and its name among `kiloseg.config.HEADS`, so that command lines offer it.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, N channels of the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kiloseg.config import HEADS, HeadSettings, Loss, Model
from kiloseg.losses import (
    class_separation,
    dense_cross_entropy,
    embedding_cross_entropy,
    official_cross_entropy,
)
from kiloseg.models.class_table import ClassTable
from kiloseg.models.prediction import nearest_class, nearest_two


class HeadLoss(NamedTuple):
    """What training minimizes, in two parts: only the first has to be averaged over labelled pixels of all workers."""

    cross_entropy: Tensor
    """A scalar: the mean over labelled pixels; 0, with zero gradients, where no pixel is labelled."""
    regularizer: Tensor | None
    """A scalar that does not depend on the batch, its weight applied; None where there is none."""


class Prediction(NamedTuple):
    """The class of every pixel at full resolution, and how sure that is."""

    labels: Tensor
    """int64 (B, H, W)."""
    confidence: Tensor
    """float32 (B, H, W): the probability of the class against the second best alone, 0.5 to 1. NaN where a head has none."""


class Head(ABC, nn.Module):
    """Base of all heads; called with the network's outputs it returns those that `loss` and `predict` take.

    Args:
        model: its own settings.
        loss: settings of its loss.
        num_classes: C.

    Raises:
        ValueError: settings that cannot work with so many classes.
    """

    table: ClassTable | None
    """The embedding of every class, for heads that have one."""

    def __init__(self, model: Model, loss: Loss, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.settings = loss
        self.table = None

    @staticmethod
    @abstractmethod
    def num_outputs(model: Model, num_classes: int) -> int:
        """Channels that the network has to give (N)."""

    def forward(self, outputs_BNhw: Tensor) -> Tensor:
        """The network's outputs as the head keeps them."""
        return outputs_BNhw

    @abstractmethod
    def loss(self, outputs_BNhw: Tensor, labels_BHW: Tensor) -> HeadLoss:
        """The loss of a batch.

        Args:
            outputs_BNhw: what calling the head returned.
            labels_BHW: int64, 0 to C - 1, or -1 for ignore, at full resolution.
        """

    @abstractmethod
    def predict(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Tensor:
        """The class of every pixel at full resolution, without a graph: int64 of shape (B, *size)."""

    def predict_confidence(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Prediction:
        """As `predict`, with confidences; for heads that do not say how sure they are these are NaN."""
        labels_BHW = self.predict(outputs_BNhw, size)
        return Prediction(labels_BHW, torch.full(labels_BHW.shape, torch.nan, device=labels_BHW.device))

    def undecayed(self) -> Iterable[nn.Parameter]:
        """Parameters of more than one dimension that weight decay leaves alone."""
        return () if self.table is None else self.table.parameters()


HeadT = TypeVar("HeadT", bound=type[Head])

_CLASSES: dict[str, type[Head]] = {}


def register_head(name: str, settings: HeadSettings | None = None) -> Callable[[HeadT], HeadT]:
    """Makes a class the head that `model.head = name` asks for.

    Args:
        name: a word that no other head has.
        settings: other settings that belong to it.

    Raises:
        ValueError: there is a head of that name.
    """
    if name in _CLASSES:
        raise ValueError(f"a head is called {name!r} already ({_CLASSES[name].__name__}); give another name")

    def register(head: HeadT) -> HeadT:
        HEADS.setdefault(name, settings or HeadSettings())
        _CLASSES[name] = head
        return head

    return register


def head_class(name: str) -> type[Head]:
    """The class that `model.head = name` asks for."""
    return _CLASSES[name]


@register_head("embedding")
class EmbeddingHead(Head):
    """One embedding per pixel and a table with one per class; the nearest class is predicted.

    Source: https://arxiv.org/abs/2012.07489.
    """

    table: ClassTable

    def __init__(self, model: Model, loss: Loss, num_classes: int) -> None:
        super().__init__(model, loss, num_classes)
        loss.negatives.check_classes(num_classes)
        self.normalise_early = model.normalise_early
        self.table = ClassTable(num_classes, model.embed_dim)

    @staticmethod
    def num_outputs(model: Model, num_classes: int) -> int:
        """D."""
        return model.embed_dim

    def forward(self, outputs_BNhw: Tensor) -> Tensor:
        """Pixel embeddings (B, D, h, w), unit vectors where `model.normalise_early` asks for that."""
        return F.normalize(outputs_BNhw, dim=1) if self.normalise_early else outputs_BNhw

    def loss(self, outputs_BNhw: Tensor, labels_BHW: Tensor) -> HeadLoss:
        """Cross-entropy against chosen negatives, and the regularizer that keeps classes apart."""
        return HeadLoss(self.cross_entropy(outputs_BNhw, labels_BHW), self._separation())

    def cross_entropy(self, pixels_BDhw: Tensor, labels_BHW: Tensor) -> Tensor:
        """Mean over labelled pixels: a scalar."""
        return embedding_cross_entropy(
            pixels_BDhw,
            self.table(),
            labels_BHW,
            negatives=self.settings.negatives,
            temperature=self.settings.temperature,
            logit=self.settings.logit,
        )

    def _separation(self) -> Tensor | None:
        if self.settings.separation_weight == 0:
            return None
        separation = class_separation(
            self.table(), margin=self.settings.separation_margin, sample=self.settings.separation_sample
        )
        return self.settings.separation_weight * separation

    @torch.no_grad()
    def predict(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Tensor:
        """The nearest class; see `kiloseg.models.nearest_class`."""
        return nearest_class(outputs_BNhw, self.table(), size=size)

    @torch.no_grad()
    def predict_confidence(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Prediction:
        """The nearest class, and its probability against the second nearest under the logits that it was trained with."""
        nearest = nearest_two(outputs_BNhw, self.table(), size=size)
        first_BHW, second_BHW = nearest.cosine, nearest.runner_up_cosine
        if self.settings.logit == "distance":
            # For unit vectors ||o - e||^2 = 2 - 2 o.e.
            first_BHW, second_BHW = (-(2 - 2 * cosine).clamp_(min=0).sqrt_() for cosine in (first_BHW, second_BHW))
        return Prediction(nearest.labels, (self.settings.temperature * (first_BHW - second_BHW)).sigmoid_())


@register_head("official")
class OfficialHead(EmbeddingHead):
    """The same with the loss as the paper's code computes it, for comparison; see `official_cross_entropy`."""

    def cross_entropy(self, pixels_BDhw: Tensor, labels_BHW: Tensor) -> Tensor:
        """Mean over labelled pixels: a scalar."""
        return official_cross_entropy(
            pixels_BDhw,
            self.table(),
            labels_BHW,
            count=self.settings.negatives.count,
            temperature=self.settings.temperature,
        )


@register_head("dense")
class DenseHead(Head):
    """One logit per class and pixel: the baseline that kiloseg is compared with. It uses no setting of the loss."""

    @staticmethod
    def num_outputs(model: Model, num_classes: int) -> int:
        """C."""
        return num_classes

    def loss(self, outputs_BNhw: Tensor, labels_BHW: Tensor) -> HeadLoss:
        """Softmax cross-entropy over all classes at full resolution."""
        return HeadLoss(dense_cross_entropy(outputs_BNhw, labels_BHW), None)

    @torch.no_grad()
    def predict(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Tensor:
        """The class of the highest logit.

        Works on one image at a time, so that the dense head is not charged with a whole batch of full-size logits.
        """
        return torch.cat([one.argmax(1) for one in self._logits(outputs_BNhw, size)])

    @torch.no_grad()
    def predict_confidence(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Prediction:
        """The class of the highest logit, and its probability against that of the second highest."""
        two = [one.topk(2, dim=1) for one in self._logits(outputs_BNhw, size)]
        labels_BHW = torch.cat([one.indices[:, 0] for one in two])
        margins_BHW = torch.cat([one.values[:, 0] - one.values[:, 1] for one in two])
        return Prediction(labels_BHW, margins_BHW.sigmoid_())

    def _logits(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Iterable[Tensor]:
        for one in outputs_BNhw:
            yield F.interpolate(one[None].float(), size=size, mode="bilinear", align_corners=False)
