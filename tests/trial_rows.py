"""Rows of trials with numbers that are easy to reason about."""

import math

from kiloseg.tuning.trial_row import TrialRow


def row(trial, miou, gib, *, val_gib=0.0, images_per_s=10.0, outcome="finished"):
    return TrialRow(
        trial=trial, outcome=outcome, overrides={"model.embed_dim": 8}, miou=miou, last_miou=miou, step=10,
        peak_memory_gib=gib, val_peak_memory_gib=val_gib, images_per_s=images_per_s, seconds=1.0, train_seconds=1.0,
    )  # fmt: skip


ROWS = [
    row("large", 0.8, 20.0, images_per_s=5.0),
    row("beaten", 0.5, 12.0),
    row("middle", 0.6, 11.0, images_per_s=2.0),
    row("equal", 0.6, 11.0),
    row("small", 0.3, 2.0, images_per_s=50.0),
    row("oom", None, None, outcome="oom"),
    row("nan", math.nan, 1.0),
    row("wide", 0.7, 11.5, val_gib=13.0),
]
