"""Defines heads, which decide what a network's outputs mean, how they are trained, and which class they predict.

A head is one object. It says how many channels the network must output, holds the class table if it has one, and has the
loss and the prediction. No code outside of this file distinguishes heads. A new head is a class here (or in a separate
file) with `@register_head`; its name must be in `kiloseg.config.HEADS` so that command lines offer it.

Shapes: B batch, H W pixels, h w feature cells, D embedding, C classes, N channels of the network.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from kiloseg.config import Loss, Model
from kiloseg.losses import (
    class_separation,
    dense_cross_entropy,
    embedding_cross_entropy,
    official_cross_entropy,
    prototype_cross_entropy,
    prototype_terms,
)
from kiloseg.losses.dense import upsampled_logits
from kiloseg.models.class_table import ClassTable, PrototypeTable
from kiloseg.models.head import Candidates as Candidates
from kiloseg.models.head import Head as Head
from kiloseg.models.head import HeadLoss as HeadLoss
from kiloseg.models.head import Prediction as Prediction
from kiloseg.models.head import head_class as head_class
from kiloseg.models.head import register_head as register_head
from kiloseg.models.prediction import nearest_class, nearest_several, nearest_two


@register_head("embedding")
class EmbeddingHead(Head):
    """Uses one embedding per pixel and a table with one embedding per class, and predicts the nearest class.

    Source: https://arxiv.org/abs/2012.07489.
    """

    table: ClassTable | PrototypeTable
    ranks = True
    takes_class_weights = True

    def __init__(self, model: Model, loss: Loss, num_classes: int) -> None:
        super().__init__(model, loss, num_classes)
        loss.negatives.check_classes(num_classes)
        self.normalize_early = model.normalize_early
        self.table = self.make_table(model, num_classes)

    @staticmethod
    def make_table(model: Model, num_classes: int) -> ClassTable | PrototypeTable:
        """Returns a new table."""
        return ClassTable(num_classes, model.dimensions(num_classes))

    @staticmethod
    def num_outputs(model: Model, num_classes: int) -> int:
        """Returns the embedding dimension D."""
        return model.dimensions(num_classes)

    def forward(self, outputs_BNhw: Tensor) -> Tensor:
        """Returns pixel embeddings (B, D, h, w), which are unit vectors if `model.normalize_early` is set."""
        return F.normalize(outputs_BNhw, dim=1) if self.normalize_early else outputs_BNhw

    def loss(self, outputs_BNhw: Tensor, labels_BHW: Tensor) -> HeadLoss:
        """Computes cross-entropy against chosen negatives, and the regularizer that keeps classes apart."""
        return HeadLoss(self.cross_entropy(outputs_BNhw, labels_BHW), self._separation())

    def cross_entropy(self, pixels_BDhw: Tensor, labels_BHW: Tensor) -> Tensor:
        """Computes the mean cross-entropy over labeled pixels as a scalar."""
        return embedding_cross_entropy(
            pixels_BDhw,
            self.table(),
            labels_BHW,
            negatives=self.settings.negatives,
            temperature=self.settings.temperature,
            logit=self.settings.logit,
            class_weights_C=self.class_weights_C,
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
        """Predicts the nearest class; see `kiloseg.models.nearest_class`."""
        return nearest_class(outputs_BNhw, self.table(), size=size, rows_per_class=self.rows_per_class)

    @torch.no_grad()
    def predict_confidence(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Prediction:
        """Predicts the nearest class and its probability against the second nearest under the logits used in training."""
        nearest = nearest_two(outputs_BNhw, self.table(), size=size, rows_per_class=self.rows_per_class)
        margin_BHW = self._logits(nearest.cosine) - self._logits(nearest.runner_up_cosine)
        return Prediction(nearest.labels, margin_BHW.sigmoid_())

    @torch.no_grad()
    def candidates(self, outputs_BNhw: Tensor, size: tuple[int, int], count: int) -> Candidates:
        """Finds the nearest classes; the familiarity is the cosine of the nearest."""
        labels_KBHW, cosines_KBHW = nearest_several(
            outputs_BNhw, self.table(), size=size, count=count, rows_per_class=self.rows_per_class
        )
        return Candidates(labels_KBHW, self._logits(cosines_KBHW), cosines_KBHW[0])

    def _logits(self, cosine: Tensor) -> Tensor:
        if self.settings.logit == "distance":
            # For unit vectors ||o - e||^2 = 2 - 2 o.e.
            cosine = -(2 - 2 * cosine).clamp_(min=0).sqrt_()
        return self.settings.temperature * cosine


@register_head("official")
class OfficialHead(EmbeddingHead):
    """Works as EmbeddingHead with the loss as the paper's code computes it, for comparison; see `official_cross_entropy`."""

    def cross_entropy(self, pixels_BDhw: Tensor, labels_BHW: Tensor) -> Tensor:
        """Computes the mean cross-entropy over labeled pixels as a scalar."""
        return official_cross_entropy(
            pixels_BDhw,
            self.table(),
            labels_BHW,
            count=self.settings.negatives.number(self.num_classes),
            temperature=self.settings.temperature,
            class_weights_C=self.class_weights_C,
        )


@register_head("prototype")
class PrototypeHead(EmbeddingHead):
    """Uses several prototypes per class, which are running means of its pixels, and predicts the class of the nearest prototype.

    Prototypes get no gradient. In each step, the labeled feature cells are assigned to the prototypes of their class; those that
    the model labels rightly, as in the paper's code, are averaged, and the prototypes follow the means (`finish_step`).

    Source: https://arxiv.org/abs/2203.15102. docs/method.md says what differs from its code.
    """

    table: PrototypeTable

    def __init__(self, model: Model, loss: Loss, num_classes: int) -> None:
        super().__init__(model, loss, num_classes)
        self.rows_per_class = model.prototypes
        self._sums_CkD: Tensor | None = None
        """The sums of unit embeddings that prototypes follow after the step; None before the first part of its batch."""

    @staticmethod
    def make_table(model: Model, num_classes: int) -> PrototypeTable:
        """Returns a table of prototypes that are drawn at random."""
        return PrototypeTable(num_classes, model.prototypes, model.dimensions(num_classes))

    def loss(self, outputs_BNhw: Tensor, labels_BHW: Tensor) -> HeadLoss:
        """Computes cross-entropy over classes, and the terms that draw feature cells to their own prototypes.

        In training mode, the cells are also summed up for `finish_step`.
        """
        settings, rows_CkD, weights_C = self.settings, self.table.rows_CkD, self.class_weights_C
        loss = prototype_cross_entropy(
            outputs_BNhw, rows_CkD, labels_BHW, temperature=settings.temperature, class_weights_C=weights_C
        )
        terms = prototype_terms(
            outputs_BNhw, rows_CkD, labels_BHW, temperature=settings.temperature, class_weights_C=weights_C
        )
        if self.training:
            self._add_cells(outputs_BNhw.detach(), terms.row_Bhw)
        loss = loss + settings.prototype_contrast * terms.contrast + settings.prototype_distance * terms.distance
        return HeadLoss(loss, None)

    @torch.no_grad()
    def _add_cells(self, outputs_BNhw: Tensor, row_Bhw: Tensor) -> None:
        """Adds the cells that the model labels rightly to the sums of their rows."""
        rows_CkD = self.table.rows_CkD
        if self._sums_CkD is None:
            self._sums_CkD = torch.zeros_like(rows_CkD)
        height, width = row_Bhw.shape[1:]
        own_Bhw = row_Bhw.div(self.rows_per_class, rounding_mode="floor")
        right_P = (self.predict(outputs_BNhw, (height, width)) == own_Bhw).flatten()
        units_PD = F.normalize(outputs_BNhw.to(rows_CkD.dtype), dim=1).permute(0, 2, 3, 1).flatten(0, 2)
        # Cells without a label have row -1, and no prediction is equal to that.
        self._sums_CkD.flatten(0, 1).index_add_(0, row_Bhw.flatten().clamp(min=0), units_PD * right_P[:, None])

    @torch.no_grad()
    def finish_step(self) -> None:
        """Moves prototypes towards the means of the cells of all parts of the batch and all workers."""
        sums_CkD, self._sums_CkD = self._sums_CkD, None
        if sums_CkD is None:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums_CkD)
        self.table.follow(sums_CkD, self.settings.prototype_momentum)


@register_head("dense")
class DenseHead(Head):
    """Computes one logit per class and pixel. This is the baseline for kiloseg, and it uses of the loss only its class weights."""

    takes_class_weights = True
    ranks = True

    @staticmethod
    def num_outputs(model: Model, num_classes: int) -> int:
        """Returns the number of classes C."""
        return num_classes

    def loss(self, outputs_BNhw: Tensor, labels_BHW: Tensor) -> HeadLoss:
        """Computes softmax cross-entropy over all classes at full resolution."""
        return HeadLoss(dense_cross_entropy(outputs_BNhw, labels_BHW, class_weights_C=self.class_weights_C), None)

    @torch.no_grad()
    def predict(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Tensor:
        """Predicts the class with the highest logit.

        It works on one image at a time, so that the dense head need not hold full-size logits of a whole batch.
        """
        return torch.cat([one.argmax(1) for one in self._logits(outputs_BNhw, size)])

    @torch.no_grad()
    def predict_confidence(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Prediction:
        """Predicts the class with the highest logit and its probability against the second highest."""
        two = [one.topk(2, dim=1) for one in self._logits(outputs_BNhw, size)]
        labels_BHW = torch.cat([one.indices[:, 0] for one in two])
        margins_BHW = torch.cat([one.values[:, 0] - one.values[:, 1] for one in two])
        return Prediction(labels_BHW, margins_BHW.sigmoid_())

    @torch.no_grad()
    def candidates(self, outputs_BNhw: Tensor, size: tuple[int, int], count: int) -> Candidates:
        """Finds the classes with the highest logits; the familiarity is the softmax probability of the best."""
        found, familiarity = [], []
        for one in self._logits(outputs_BNhw, size):
            found.append(one.topk(count, dim=1))
            familiarity.append((found[-1].values[:, 0] - one.logsumexp(1)).exp_())
        logits_KBHW, labels_KBHW = (torch.cat(parts).transpose(0, 1) for parts in zip(*found, strict=True))
        return Candidates(labels_KBHW, logits_KBHW, torch.cat(familiarity))

    def _logits(self, outputs_BNhw: Tensor, size: tuple[int, int]) -> Iterable[Tensor]:
        for one in outputs_BNhw.split(1):
            yield upsampled_logits(one, size)
