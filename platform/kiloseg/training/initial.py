"""Starts a run from the weights of another one, whose classes may differ: fine-tuning from a checkpoint of kiloseg.

The network's weights are taken over where name and shape agree. What belongs to single classes, the rows of the class table and
the last layer of the dense head, is taken over for classes of the same name. All else keeps its initial values.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiloseg.data.classes import ClassRecord
from kiloseg.models import Segmenter
from kiloseg.storage.filesystems import LocalFolder, open_folder
from kiloseg.training.checkpoint import FORMAT
from kiloseg.training.checkpoint_names import PATTERN, checkpoint_names
from kiloseg.training.model_folder import CONFIG, load_trained

WORDS = ("none", "hub", "package")
"""Values of `model.weights` that are no path."""


def initial_state(weights: str) -> dict[str, Any] | None:
    """Loads the checkpoint or exported folder that `model.weights` names; None for a word or a file with a backbone's weights.

    Raises:
        ValueError: the folder has no checkpoint, or the checkpoint is damaged.
    """
    if weights in WORDS:
        return None
    place = weights if "://" in weights else str(Path(weights).expanduser())
    folder = open_folder(place)
    local = folder.path if isinstance(folder, LocalFolder) else None
    if local is not None and (not local.exists() or (local.is_file() and not _is_checkpoint(local))):
        return None  # it is read, or refused with what is expected, where the network is built
    state = load_trained(place)
    if state is None and checkpoint_names(folder.entries()):
        raise ValueError(f"model.weights = {weights!r}: all checkpoints in this folder are damaged; give another")
    if state is None:
        raise ValueError(
            f"model.weights = {weights!r} is a folder without checkpoints ({PATTERN}) and without an exported model ({CONFIG}); "
            "give the trainer.output of a run, a folder of kiloseg export --format folder, or a file"
        )
    return state


def take_over(segmenter: Segmenter, stored: dict[str, Any], classes: ClassRecord) -> str:
    """Copies weights from the content of a checkpoint into a new model.

    Args:
        segmenter: the model, which is changed.
        stored: the content of a checkpoint.
        classes: the classes of the new model.

    Returns:
        What was taken over, in a sentence.

    Raises:
        ValueError: most weights of the backbone are not there.
    """
    there: dict[str, Tensor] = stored["model"]
    # Checkpoints from before heads existed name the table as the segmenter's own.
    there = {f"head.{name}" if name.startswith("table.") else name: tensor for name, tensor in there.items()}
    own = segmenter.state_dict()
    record = stored.get("classes")
    pairs = [] if record is None else _same_names(classes["names"], record["names"])
    counts = {"mine": len(classes["names"]), "theirs": int(stored["num_classes"])}
    taken: list[str] = []
    by_class = False
    for name, tensor in own.items():
        other = there.get(name)
        if other is None:
            continue
        if _belongs_to_classes(name, tensor, other, **counts):
            if pairs:
                mine, theirs = (list(labels) for labels in zip(*pairs, strict=True))
                tensor[mine] = other[theirs].to(tensor)
                by_class = True
        elif other.shape == tensor.shape:
            tensor.copy_(other)
            taken.append(name)
    config = stored["config"]
    source = f"{config['model.arch']} over {config['model.backbone']} at step {stored['step']:,}"
    layers, fitting = ([name for name in names if not name.endswith("num_batches_tracked")] for names in (own, taken))
    backbone, known_backbone = (
        sum(name.startswith("network.encoder.") for name in names) for names in (layers, fitting)
    )
    # Names and shapes of a few layers agree by chance.
    if known_backbone < backbone / 2:
        raise ValueError(
            f"model.weights = {stored['location']!r} is of {source}: only {known_backbone} of {backbone} tensors of this backbone "
            f"are there; use model.backbone = {config['model.backbone']!r}"
        )
    known = (
        f"{len(pairs) if by_class else 0} of {counts['mine']} classes start from the {counts['theirs']} there, by name"
    )
    return f"starts from {stored['location']} ({source}): {len(fitting)} of {len(layers)} tensors as they are; {known}"


def _belongs_to_classes(name: str, tensor: Tensor, other: Tensor, *, mine: int, theirs: int) -> bool:
    """Returns whether rows of both tensors stand for classes: a table, or the last layer of a network with an output per class."""
    if not name.startswith(("head.table.", "network.segmentation_head.")):
        return False
    return len(tensor) == mine and len(other) == theirs and tensor.shape[1:] == other.shape[1:]


def _same_names(mine: list[str], theirs: list[str]) -> list[tuple[int, int]]:
    """Returns pairs of labels whose classes have the same name; names that occur more than once are left out."""
    there, here = Counter(theirs), Counter(mine)
    places = {name: label for label, name in enumerate(theirs) if there[name] == 1}
    return [(label, places[name]) for label, name in enumerate(mine) if name in places and here[name] == 1]


def _is_checkpoint(path: Path) -> bool:
    """Returns whether a file is a checkpoint of kiloseg; other files may hold a timm state dict."""
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # torch raises many kinds; the file is refused where it is used as a state dict
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT
