"""Saves and loads checkpoints: one file per step, written completely or not at all, loaded without unpickling code.

They are in a folder of this machine or of any filesystem that pyarrow supports by URL.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from kiloseg.storage.atomic import whole_file
from kiloseg.storage.filesystems import LocalFolder, holder, inside, open_folder
from kiloseg.training.checkpoint_names import checkpoint_name, checkpoint_names

FORMAT = "kiloseg-checkpoint-1"


def save_checkpoint(
    directory: Path | str, step: int, state: dict[str, Any], *, keep: int, also: int | None = None
) -> Path | str:
    """Writes `state` (tensors, numbers, strings, containers of them) as step-NNNNNNNN.pt and keeps only the `keep` newest.

    The checkpoint of step `also` is kept besides them, if there is one.

    Returns:
        The location of the checkpoint: a path, or a URL if `directory` is one.

    Raises:
        OSError: the file could not be written, for example because the disk is full; existing files are unchanged.
    """
    folder = open_folder(directory)
    name = checkpoint_name(step)
    content = {"format": FORMAT, "step": step, **state}
    try:
        if isinstance(folder, LocalFolder):
            _write_local(folder.path / name, content)
        else:
            with folder.scratch() as scratch:
                _write_local(scratch / name, content)
                folder.put(scratch / name, name)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise OSError(
            f"checkpoint {folder.at(name)} could not be written ({error}); free some disk space and "
            "resume; older checkpoints are kept"
        ) from error
    older = [other for other in checkpoint_names(folder.entries()) if other != name]
    for old in older[: max(len(older) - keep + 1, 0)]:
        if also is None or old != checkpoint_name(also):
            folder.remove(old)
    return folder.path / name if isinstance(folder, LocalFolder) else inside(folder.location, name)


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Loads the state of a checkpoint file to the CPU and adds its path or URL as "location".

    Raises:
        ValueError: the file is damaged or has another format.
        ConnectionError: the filesystem does not answer.
    """
    folder, name = holder(path)
    shown = folder.at(name)
    try:
        source = folder.path / name if isinstance(folder, LocalFolder) else io.BytesIO(folder.read(name))
        state = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"checkpoint {shown} does not exist") from None
    except ConnectionError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(
            f"checkpoint {shown} is damaged ({type(error).__name__}); use the checkpoint before it"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{shown} is not a checkpoint of kiloseg (expected format {FORMAT!r})")
    return state | {"location": str(path)}


def load_newest(*directories: Path | str) -> dict[str, Any] | None:
    """Loads the newest complete checkpoint in some folders; None if there is none. Skips damaged ones with a warning."""
    found = [
        (name, directory) for directory in directories for name in checkpoint_names(open_folder(directory).entries())
    ]
    for name, directory in sorted(found, key=lambda entry: entry[0], reverse=True):
        try:
            return load_checkpoint(inside(str(directory), name))
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
    return None


def _write_local(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=True) as file:
        torch.save(content, file)
