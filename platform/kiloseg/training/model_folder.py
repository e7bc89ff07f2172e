"""Writes and reads a trained model as a folder of plain files, none of which can run code.

The files are config.json, classes.json and model.safetensors. The folder is on this machine or in an object store, and
`kiloseg.load` accepts its path or URL.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch

from kiloseg.data.classes import ClassRecord
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import Folder, open_folder
from kiloseg.training.checkpoint import load_checkpoint, load_newest

FORMAT = "kiloseg-model-1"
CONFIG = "config.json"
CLASSES = "classes.json"
WEIGHTS = "model.safetensors"


def save_folder(content: dict[str, Any], classes: ClassRecord, out: Path | str, *, overwrite: bool = False) -> None:
    """Writes the model of a checkpoint as a folder, without the state of its optimizer.

    Args:
        content: content of a checkpoint.
        classes: record of the model's classes.
        out: path or URL of the folder.
        overwrite: whether to replace a model that is already there.

    Raises:
        ValueError: the folder already holds a model and `overwrite` is not set.
        ConnectionError: the folder's store does not answer.
    """
    folder = open_folder(out)
    present = sorted({CONFIG, CLASSES, WEIGHTS} & set(folder.entries()))
    if present and not overwrite:
        raise ValueError(f"{folder.at(present[0])} exists; give --overwrite, or another --out")
    weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in content["model"].items()}
    files = {
        WEIGHTS: safetensors.torch.save(weights, metadata={"format": "pt"}),
        CLASSES: _encoded(dict(classes)),
    }
    config = {
        "format": FORMAT,
        "step": content["step"],
        "num_classes": content["num_classes"],
        "sha256": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "config": content["config"],
        "report": {
            name: value for name, value in content.get("report", {}).items() if isinstance(value, int | float | str)
        },
    }
    # Without config.json the folder is no model: it is removed first and written last, so that an interruption leaves no
    # mixture of two models.
    if CONFIG in present:
        folder.remove(CONFIG)
    for name, data in files.items():
        folder.write(name, data)
    folder.write(CONFIG, _encoded(config))


def load_trained(place: Path | str) -> dict[str, Any] | None:
    """Loads the content of a checkpoint file, of an exported folder, or of the newest complete checkpoint in a folder.

    Returns:
        The content, without the state of an optimizer if it comes from an exported folder; None if the folder has neither.

    Raises:
        ValueError: the file or the exported folder is damaged.
        ConnectionError: the store does not answer.
    """
    if str(place).partition("?")[0].endswith(".pt") or Path(place).is_file():
        return load_checkpoint(place)
    return load_folder(place) if is_model_folder(place) else load_newest(place)


def is_model_folder(place: Path | str) -> bool:
    """Returns whether the folder at a path or URL is one that `save_folder` wrote."""
    return CONFIG in open_folder(place).entries()


def load_folder(place: Path | str) -> dict[str, Any]:
    """Reads the model in a folder, as the content of a checkpoint without its optimizer.

    Raises:
        DataError: a file is missing, damaged or of another format; the message names the file.
        ConnectionError: the store does not answer.
    """
    folder = open_folder(place)
    config = _decoded(folder, CONFIG, _read(folder, CONFIG))
    if config.get("format") != FORMAT:
        raise DataError(
            f"{folder.at(CONFIG)} has format {config.get('format')!r}: expected {FORMAT!r}; export it again with --overwrite"
        )
    missing = {"step", "num_classes", "sha256", "config"} - config.keys()
    if missing or not {WEIGHTS, CLASSES} <= config["sha256"].keys():
        raise DataError(
            f"{folder.at(CONFIG)} lacks {', '.join(sorted(missing)) or 'a digest'}; export the model again with --overwrite"
        )
    files = {}
    for name in (WEIGHTS, CLASSES):
        files[name] = _read(folder, name)
        if hashlib.sha256(files[name]).hexdigest() != config["sha256"][name]:
            raise DataError(
                f"{folder.at(name)} is not the file that {CONFIG} lists (its sha256 differs); export it again with --overwrite"
            )
    classes = _decoded(folder, CLASSES, files[CLASSES])
    if config["num_classes"] != len(classes["names"]):
        raise DataError(
            f"{folder.at(CONFIG)} says {config['num_classes']} classes, {CLASSES} names {len(classes['names'])}: expected the "
            "same number; export the model again with --overwrite"
        )
    return {
        "step": config["step"],
        "num_classes": config["num_classes"],
        # JSON has no tuples, and no setting is a list.
        "config": {
            name: tuple(value) if isinstance(value, list) else value for name, value in config["config"].items()
        },
        "classes": classes,
        "report": config.get("report", {}),
        "model": safetensors.torch.load(files[WEIGHTS]),
        "location": str(place),
    }


def _encoded(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _read(folder: Folder, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError:
        raise DataError(f"{folder.at(name)} is missing; export the model again with --overwrite") from None


def _decoded(folder: Folder, name: str, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise DataError(f"{folder.at(name)} is not JSON ({error}); export the model again with --overwrite") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{folder.at(name)} holds a {type(content).__name__}: expected an object; export it again with --overwrite"
        )
    return content
