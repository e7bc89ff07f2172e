"""Named runs: those of the paper, with published results to compare with, and those that need no GPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from kiloseg.config import Config, Data, Loss, Model, Negatives, Optimizer, Trainer
from kiloseg.overrides import override


@dataclass(frozen=True, kw_only=True)
class Published:
    """A result published by others."""

    miou: float
    """Mean IoU, 0 to 1."""
    system: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A run, the command that builds its data set, and published results on it."""

    config: Config
    """The settings of the run, except `data.path`."""
    build: str
    """The command that builds the data set."""
    published: tuple[Published, ...] = ()
    """Results of others on this data set; empty if there are none."""


def _as_in_the_paper(*, embed_dim: int, count: int, batch_size: int, steps: int) -> Config:
    """Returns the settings of the paper's code.

    These are DeepLabV3+, SGD, polynomial decay, nearest negatives, distances, temperature 20 and class separation.
    """
    return Config(
        data=Data(crop=512),
        model=Model(arch="deeplabv3plus", weights="hub", embed_dim=embed_dim),
        loss=Loss(
            negatives=Negatives(kind="nearest", count=count), temperature=20.0, logit="distance", separation_weight=1.0
        ),
        optimizer=Optimizer(name="sgd", lr=0.01, backbone_lr_factor=0.1, weight_decay=1e-4, poly_power=0.9),
        trainer=Trainer(steps=steps, batch_size=batch_size, validate_every=steps // 10, report_every=100),
    )


_BACKBONES = {"mobilenetv2": "mobilenetv2_100", "resnet50": "resnet50", "resnet101": "resnet101"}

_REPRODUCED = "independent run of the paper's code, https://github.com/shipra25jain/ESSNet/issues/5"
_MMSEG = "https://github.com/open-mmlab/mmsegmentation, its model zoo"
_MASKFORMER = "https://github.com/facebookresearch/MaskFormer, its model zoo"
_RANKSEG = "https://github.com/openseg-group/RankSeg, its README"

_PAPER: dict[str, tuple[str, Config, dict[str, tuple[Published, ...]]]] = {
    "cityscapes": (
        "datasets/cityscapes.py",
        _as_in_the_paper(embed_dim=6, count=7, batch_size=12, steps=50_000),
        {
            "mobilenetv2": (
                Published(miou=0.662, system="ESSNet, D = 6, K = 7, batch 12, 50k steps", source=_REPRODUCED),
                Published(miou=0.7520, system="DeepLabV3+ MobileNetV2, dense", source=_MMSEG),
            ),
            "resnet50": (Published(miou=0.8009, system="DeepLabV3+ ResNet-50, dense", source=_MMSEG),),
            "resnet101": (Published(miou=0.8097, system="DeepLabV3+ ResNet-101, dense", source=_MMSEG),),
        },
    ),
    "voc": (
        "datasets/voc.py",
        _as_in_the_paper(embed_dim=12, count=7, batch_size=10, steps=85_000),
        {
            "resnet50": (Published(miou=0.7681, system="DeepLabV3+ ResNet-50, dense, 40k steps", source=_MMSEG),),
            "resnet101": (Published(miou=0.7862, system="DeepLabV3+ ResNet-101, dense, 40k steps", source=_MMSEG),),
        },
    ),
    "ade20k": (
        "datasets/ade20k.py",
        _as_in_the_paper(embed_dim=12, count=8, batch_size=10, steps=85_000),
        {
            "mobilenetv2": (Published(miou=0.3402, system="DeepLabV3+ MobileNetV2, dense", source=_MMSEG),),
            "resnet50": (
                Published(miou=0.344, system="ESSNet, D = 12, K = 8, batch 10, 85k steps", source=_REPRODUCED),
                Published(miou=0.4395, system="DeepLabV3+ ResNet-50, dense, 160k steps", source=_MMSEG),
            ),
            "resnet101": (Published(miou=0.4547, system="DeepLabV3+ ResNet-101, dense, 160k steps", source=_MMSEG),),
        },
    ),
    "coco-stuff10k": (
        "datasets/coco_stuff10k.py",
        _as_in_the_paper(embed_dim=12, count=7, batch_size=10, steps=85_000),
        {
            "resnet50": (
                Published(miou=0.297, system="ESSNet, D = 12, K = 7, batch 10, 85k steps", source=_REPRODUCED),
            ),
        },
    ),
    "coco-lvis": (
        "datasets/coco_lvis.py",
        _as_in_the_paper(embed_dim=12, count=7, batch_size=10, steps=200_000),
        {
            "resnet101": (
                Published(miou=0.110, system="DeepLabV3 ResNet-101, dense, 8 GPUs", source=_RANKSEG),
                Published(miou=0.128, system="DeepLabV3 ResNet-101 with RankSeg, 8 GPUs", source=_RANKSEG),
                Published(miou=0.246, system="Segmenter ViT with RankSeg, the best found", source=_RANKSEG),
            ),
        },
    ),
}


def _presets() -> dict[str, Preset]:
    """Returns all presets by name: the paper's rows by data set and backbone, and the synthetic data sets."""
    presets = {"glyphs": Preset(config=GLYPHS, build="python datasets/glyphs.py --out DIR --num-classes 40")}
    presets["emoji"] = Preset(
        config=EMOJI,
        build="python datasets/emoji.py --out DIR --size 96 --train-samples 40000 --val-samples 1536 "
        "--val-style-samples 1536",
    )
    presets["emoji-gpu"] = Preset(config=EMOJI_GPU, build="python datasets/emoji.py --out DIR")
    for data, (builder, config, published) in _PAPER.items():
        for name, backbone in _BACKBONES.items():
            model = dataclasses.replace(config.model, backbone=backbone)
            presets[f"{data}-{name}"] = Preset(
                config=dataclasses.replace(config, model=model),
                build=f"python {builder} --root ARCHIVES --out DIR",
                published=published.get(name, ()),
            )
    presets["ade20k-full-resnet50"] = Preset(
        config=presets["ade20k-resnet50"].config,
        build="python datasets/ade20k_full.py --root ARCHIVES --out DIR",
        published=(
            Published(miou=0.124, system="per-pixel baseline, ResNet-50, dense, 8.0 GB a GPU", source=_MASKFORMER),
            Published(miou=0.160, system="MaskFormer, ResNet-50, 6.5 GB a GPU", source=_MASKFORMER),
        ),
    )
    return presets


GLYPHS = Config(
    data=Data(crop=96, scale_min=0.9, scale_max=1.1, flip=0.0, jitter=0.3, loader_workers=0, val_samples=144),
    model=Model(arch="fpn", backbone="tf_efficientnet_lite0", weights="package", embed_dim=16, decoder_dropout=0.0),
    loss=Loss(negatives=Negatives(kind="all"), temperature=20.0, logit="cosine"),
    optimizer=Optimizer(
        name="adamw", lr=6e-3, backbone_lr_factor=1.0, weight_decay=0.01, warmup_steps=20, clip_norm=1.0
    ),
    trainer=Trainer(steps=210, batch_size=8, validate_every=70, report_every=20),
)
"""A network and schedule that begin to learn 40 classes of datasets/glyphs.py in some 90 seconds of one core."""

EMOJI = override(
    GLYPHS,
    {
        "data.crop": 64,
        "data.scale_min": 1.0,
        "data.scale_max": 1.0,
        "data.class_crops": 1.0,
        "data.repeat_threshold": 0.01,
        "data.other_classes": "ignore",
        "data.val_samples": None,
        "model.arch": "fpn8",
        "model.input_scale": 2,
        "model.embed_dim": 128,
        "optimizer.lr": 3e-3,
        "optimizer.warmup_steps": 50,
        "trainer.steps": 800,
        "trainer.batch_size": 16,
        "trainer.validate_every": 0,
    },
)
"""Crops of small emoji scenes, placed over rarer classes; two cores are enough for it. Scenes are not mirrored because some
contain text. Objects have 16 to 30 pixels, so the network sees them enlarged. At an equal batch, 128 dimensions beat a dense head
and 32 do not (experiments/LOG.md)."""

EMOJI_GPU = override(
    EMOJI,
    {
        "data.crop": 256,
        "data.scale_min": 0.9,
        "data.scale_max": 1.1,
        "data.loader_workers": 8,
        "model.arch": "deeplabv3plus",
        "model.backbone": "resnet50",
        "model.weights": "hub",
        "model.input_scale": 1,
        "model.decoder_dropout": None,
        "optimizer.lr": 1e-3,
        "optimizer.backbone_lr_factor": 0.3,
        "optimizer.warmup_steps": 500,
        "trainer.steps": 40_000,
        "trainer.batch_size": 32,
        "trainer.validate_every": 4_000,
        "trainer.report_every": 100,
    },
)
"""All 1,536 emoji at full size with ResNet-50, for one GPU. It has not been run yet because no GPU was available."""

PRESETS = _presets()
"""All presets by name."""
