"""Settings of the optimizer and of the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kiloseg.config.checks import require, require_word

OptimizerName = Literal["sgd", "adamw"]
Precision = Literal["auto", "fp32", "bf16"]


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
        require_word("optimizer.name", self.name, OptimizerName)
        require(self.lr > 0, "optimizer.lr", self.lr, "a rate above 0")
        require(self.backbone_lr_factor >= 0, "optimizer.backbone_lr_factor", self.backbone_lr_factor, "0 or more")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "0 to below 1")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        require(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more")
        require(self.poly_power > 0, "optimizer.poly_power", self.poly_power, "an exponent above 0")
        require(self.clip_norm >= 0, "optimizer.clip_norm", self.clip_norm, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Settings of the training loop."""

    steps: int = 1000
    """Number of optimization steps."""
    batch_size: int = 16
    """Images per step, summed over all workers."""
    micro_batch_size: int | None = None
    """Most images that a worker takes through the network at once. A step with more images sums up the gradients of several
    parts, so that `batch_size` can exceed the memory. The loss of the step is the mean over all its pixels either way; batch
    normalization and random negatives see the images of one part only. None: all images of a step at once."""
    validate_every: int = 0
    """Steps between validations, each of which also writes a report and a checkpoint. 0: validate after the last step only."""
    patience: int = 0
    """The run ends early after this many validations in a row without a new best val/miou. The checkpoint of the best validation
    is then kept besides the newest. 0: the run always takes all its steps. Meant for single runs; a search stops trials itself."""
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
    """Number of checkpoints, the newest ones, to keep in `output`. With `patience`, the best one is kept too."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        require(self.steps >= 1, "trainer.steps", self.steps, "at least 1 step")
        require(self.batch_size >= 1, "trainer.batch_size", self.batch_size, "at least 1 image")
        if self.micro_batch_size is not None:
            require(
                self.micro_batch_size >= 1,
                "trainer.micro_batch_size",
                self.micro_batch_size,
                "at least 1 image, or None for all at once",
            )
        require(
            self.patience >= 0 and (self.patience == 0 or self.validate_every > 0),
            "trainer.patience",
            self.patience,
            "0 or more validations, and trainer.validate_every > 0 so that there are several",
        )
        require(self.validate_every >= 0, "trainer.validate_every", self.validate_every, "0 or more steps")
        require(self.report_every >= 1, "trainer.report_every", self.report_every, "at least 1 step")
        require_word("trainer.precision", self.precision, Precision)
        require(
            not (self.compile and self.checkpoint_activations),
            "trainer.compile",
            self.compile,
            "False with trainer.checkpoint_activations = True: a compiled graph chooses by itself what to recompute",
        )
        require(self.keep_checkpoints >= 1, "trainer.keep_checkpoints", self.keep_checkpoints, "at least 1")
