"""Runs that are known to work."""

from __future__ import annotations

from kiloseg.config import Config, Data, Loss, Model, Negatives, Optimizer, Trainer

GLYPHS = Config(
    data=Data(crop=96, scale_min=0.9, scale_max=1.1, flip=0.0, jitter=0.3, loader_workers=0, val_samples=192),
    model=Model(arch="fpn", backbone="tf_efficientnet_lite0", weights="package", embed_dim=16),
    loss=Loss(negatives=Negatives(kind="all"), temperature=20.0, logit="cosine"),
    optimizer=Optimizer(
        name="adamw", lr=3e-3, backbone_lr_factor=1.0, weight_decay=0.01, warmup_steps=20, clip_norm=1.0
    ),
    trainer=Trainer(steps=240, batch_size=8, validate_every=80, report_every=20),
)
"""A network and schedule that learn 40 classes of datasets/glyphs.py in about two minutes on one core."""
