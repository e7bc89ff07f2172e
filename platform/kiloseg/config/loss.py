"""Settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal

from kiloseg.config.checks import require, require_word
from kiloseg.config.sizes import Auto, auto_negatives

NegativesKind = Literal["nearest", "random", "mixed", "all"]
Logit = Literal["distance", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Which classes a pixel is compared with besides its own."""

    kind: NegativesKind = "all"
    """How negatives are chosen. all: every other class, which gives the exact softmax; `count` is then not used. random:
    classes shared by all pixels of a batch, starting with those that occur in it; the rest are drawn again at every step.
    nearest: the classes closest to the pixel (the paper). mixed: half random, half nearest. The default is all because it
    works for any number of classes, while nearest starts learning slowest. At 1,024 or more classes, random with `count` 255
    was better than all in half the time (experiments/LOG.md)."""
    count: int | Auto = 8
    """Negatives per pixel, from 1 to the number of classes - 1, or auto, which grows with the number of classes (docs/rule.md). For
    random, choose more than the classes in a batch."""

    def __post_init__(self) -> None:
        require_word("loss.negatives.kind", self.kind, NegativesKind)
        if self.count == "auto":
            return
        known = isinstance(self.count, Integral) and self.count >= 1
        require(known, "loss.negatives.count", self.count, "at least 1 negative per pixel, or auto")
        if self.kind == "mixed":
            require(
                self.count >= 2, "loss.negatives.count", self.count, "at least 2 for kind 'mixed', which halves them"
            )

    def number(self, num_classes: int) -> int:
        """Returns the number of negatives per pixel of a run with a number of classes; kind all does not use it.

        Raises:
            ValueError: the kind is mixed and there are two classes.
        """
        if self.count != "auto":
            return self.count
        if self.kind == "mixed" and num_classes < 3:
            raise ValueError(
                "loss.negatives.kind = 'mixed' needs 3 classes or more, of which 2 are negatives; use 'all'"
            )
        return num_classes - 1 if self.kind == "all" else auto_negatives(num_classes, self.kind)

    def check_classes(self, num_classes: int) -> None:
        """Raises ValueError if `count` is larger than the `num_classes` - 1 other classes that a pixel has."""
        if self.kind != "all" and self.count != "auto" and self.count > num_classes - 1:
            raise ValueError(
                f"loss.negatives.count = {self.count}: {num_classes} classes leave a pixel only {num_classes - 1} others; "
                f"lower loss.negatives.count to {num_classes - 1} or use loss.negatives.kind = 'all'"
            )


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Settings of the losses of heads with class vectors. The dense head uses only `class_weights`."""

    negatives: Negatives = field(default_factory=Negatives)
    temperature: float = 20.0
    """Factor tau that scales distances or cosines, above 0; the paper uses 20."""
    logit: Logit = "cosine"
    """The logit of a pixel o and a class e. cosine: tau o.e. distance: -tau ||o - e|| (the paper), which is no better and takes
    longer (experiments/LOG.md)."""
    class_weights: str = "none"
    """Weights of classes in the mean over pixels, as in torch.nn.CrossEntropyLoss: each pixel counts by the weight of its class.
    none: all classes count the same. inverse: 1 / f, and sqrt: 1 / sqrt(f), where f is the share of a class in the labeled pixels
    of the training split (from its index), scaled so that the mean weight of a pixel is 1; classes without pixels get weight 1.
    Or the path of a CSV file with the columns name and weight; classes that it does not name get weight 1. On a CPU, the
    embedding loss runs without its compiled kernel then. Every built-in head uses them; the regularizer does not."""
    separation_weight: float = 0.0
    """Weight of the class separation regularizer; the paper uses 1. The default, 0, turns it off: with 64 or more dimensions
    no two classes come within the margin, so it changes nothing (experiments/LOG.md) and costs C * C * D per step."""
    separation_margin: float = 0.2
    """Distance below which two classes repel each other, 0 to 2."""
    separation_sample: int | None = None
    """Number of classes, drawn at every step, from which the regularizer is estimated; comparing all classes takes time
    proportional to the square of their number. None: all classes."""

    prototype_momentum: float = 0.999
    """Of the prototype head: the share of a prototype that stays at each step, 0 to 1; the rest is the mean of the pixels assigned
    to it. The paper uses 0.999; with 1 the prototypes stay as they were drawn."""
    prototype_contrast: float = 0.01
    """Of the prototype head: weight of the cross-entropy of a pixel's own prototype among all prototypes of all classes."""
    prototype_distance: float = 0.001
    """Of the prototype head: weight of the squared distance, (1 - cosine)^2, of a pixel to its own prototype."""

    def __post_init__(self) -> None:
        require_word("loss.logit", self.logit, Logit)
        require(bool(self.class_weights), "loss.class_weights", self.class_weights, "none, inverse, sqrt or a CSV file")
        require(self.temperature > 0, "loss.temperature", self.temperature, "a factor above 0")
        require(self.separation_weight >= 0, "loss.separation_weight", self.separation_weight, "0 or more")
        require(
            0 <= self.separation_margin <= 2,
            "loss.separation_margin",
            self.separation_margin,
            "0 to 2, a distance of unit vectors",
        )
        require(
            0 <= self.prototype_momentum <= 1,
            "loss.prototype_momentum",
            self.prototype_momentum,
            "0 to 1, the share of a prototype that stays at each step",
        )
        for name in ("prototype_contrast", "prototype_distance"):
            require(getattr(self, name) >= 0, f"loss.{name}", getattr(self, name), "a weight of 0 or more")
        if self.separation_sample is not None:
            require(
                self.separation_sample >= 1,
                "loss.separation_sample",
                self.separation_sample,
                "at least 1, or None for all",
            )
