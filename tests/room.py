"""A model of five classes of a room, as tests of its classes load it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kiloseg.config import Config, Model
from kiloseg.models import Segmenter
from kiloseg.overrides import flatten, override
from kiloseg.training.checkpoint import save_checkpoint


def save_room(folder: Path, names: Sequence[str], **changes: Any) -> str:
    """Saves a checkpoint of a network that has not been trained, and returns its path; the first of the names is the background.

    `changes` are settings by dotted names.
    """
    torch.manual_seed(0)
    config = override(Config(model=Model(arch="fpn", backbone="test_resnet", embed_dim=6)), changes)
    classes = {
        "ids": [0, 3, 4, 8, 9], "names": names, "background": 0, "train_samples": [9, 5, 4, 3, 2], "data": "room", "digest": "x",
    }  # fmt: skip
    content = {
        "config": flatten(config), "num_classes": 5, "classes": classes, "model": Segmenter(config.model, 5).state_dict(),
    }  # fmt: skip
    return str(save_checkpoint(folder, 7, content, keep=1))
