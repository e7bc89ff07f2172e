"""Settings of the data that a run reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kiloseg.config.checks import require, require_word
from kiloseg.storage.credentials import require_no_credentials

OtherClasses = Literal["background", "ignore"]


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
    in n training samples is chosen with weight 1 / n^e, where e is class_crops_exponent. 0: crops are placed anywhere."""
    class_crops_exponent: float = 0.5
    """Exponent e of class_crops, 0 or more. 0: all classes of a sample are equally likely. With 1, training sees the classes of
    a long tail far more evenly than with 0.5."""
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
            require(
                2 <= self.num_classes <= 65535, "data.num_classes", self.num_classes, "2 to 65,535, or None for all"
            )
        if self.val_samples is not None:
            require(self.val_samples >= 1, "data.val_samples", self.val_samples, "at least 1, or None for all")
        splits = self.val_splits
        require(
            splits[:1] == ("val",) and "train" not in splits and len(set(splits)) == len(splits),
            "data.val_splits",
            splits,
            "'val' first, then any other splits except train, each once",
        )
        require_word("data.other_classes", self.other_classes, OtherClasses)
        require(self.crop >= 32 and self.crop % 32 == 0, "data.crop", self.crop, "a positive multiple of 32 pixels")
        require(self.scale_min > 0, "data.scale_min", self.scale_min, "a factor above 0")
        require(
            self.scale_max >= self.scale_min, "data.scale_max", self.scale_max, f"at least scale_min = {self.scale_min}"
        )
        require(0 <= self.flip <= 1, "data.flip", self.flip, "a probability from 0 to 1")
        require(0 <= self.jitter <= 1, "data.jitter", self.jitter, "a strength from 0 to 1")
        require(0 <= self.repeat_threshold <= 1, "data.repeat_threshold", self.repeat_threshold, "a share from 0 to 1")
        require(0 <= self.class_crops <= 1, "data.class_crops", self.class_crops, "a probability from 0 to 1")
        require(self.class_crops_exponent >= 0, "data.class_crops_exponent", self.class_crops_exponent, "0 or more")
        require(self.loader_workers >= 0, "data.loader_workers", self.loader_workers, "0 or more processes")
        require_no_credentials("data.path", self.path)
        require(self.cache_gib > 0, "data.cache_gib", self.cache_gib, "more than 0 GiB")
        require(self.shuffle_buffer >= 1, "data.shuffle_buffer", self.shuffle_buffer, "at least 1 sample")
        require(self.max_bad_samples >= 0, "data.max_bad_samples", self.max_bad_samples, "0 or more samples")
        require(self.val_batch_size >= 1, "data.val_batch_size", self.val_batch_size, "at least 1 image")
