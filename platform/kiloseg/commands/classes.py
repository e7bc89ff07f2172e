"""Lists the classes of a trained model, or changes the classes without training.

    kiloseg classes SOURCE list
    kiloseg classes SOURCE rename OLD NEW --out FOLDER
    kiloseg classes SOURCE remove NAME ... --out FOLDER
    kiloseg classes SOURCE merge NAME OTHER ... --out FOLDER          one class, under the first name
    kiloseg classes SOURCE add NAME IMAGE MASK [IMAGE MASK ...] --out FOLDER

A mask has the size of its image, and its nonzero pixels mark the class. The result is a checkpoint in FOLDER, which every command
accepts as its SOURCE.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """List or change the classes of a model."""

    source: tyro.conf.Positional[str]
    """A checkpoint, a folder of them, runs:/ID, or the name of a study."""
    action: tyro.conf.Positional[Literal["list", "rename", "remove", "merge", "add"]]
    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names and files for the action, as shown above."""
    out: Path | None = None
    """Folder for the changed model; must not hold checkpoints yet."""
    fit: bool = False
    """For add: fit the new row alone to the examples, which takes a second or so, instead of taking their mean."""
    runs: Path = Path("runs")
    """Folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server."""


def main(arguments: Arguments) -> None:
    """Prints the classes, or writes a model with changed classes."""
    from kiloseg.inference.loading import content_of
    from kiloseg.training.checkpoint import save_checkpoint
    from kiloseg.training.checkpoint_names import newest_step

    if arguments.action != "list":
        if arguments.out is None:
            raise ValueError(f"--out is missing: give a folder for the model after {arguments.action}")
        if newest_step(arguments.out) or any(arguments.out.glob("step-*.pt")):
            raise ValueError(f"--out {arguments.out} holds checkpoints already; give another folder")
    content = content_of(arguments.source, arguments.runs)
    if arguments.action == "list":
        _print(content)
        return
    assert arguments.out is not None
    changed = _change(content, arguments.action, arguments.words, fit=arguments.fit)
    path = save_checkpoint(arguments.out, content["step"], changed, keep=1)
    print(f"{path}: {changed['num_classes']:,} classes")


def _change(content: dict[str, Any], action: str, words: tuple[str, ...], *, fit: bool) -> dict[str, Any]:
    from kiloseg.inference import editing

    if action == "rename" and len(words) == 2:
        return editing.rename(content, *words)
    if action == "remove" and words:
        return editing.remove(content, words)
    if action == "merge" and len(words) >= 2:
        return editing.merge(content, words[0], words[1:])
    if action == "add" and len(words) >= 3 and len(words) % 2:
        return editing.add(content, {words[0]: list(zip(words[1::2], words[2::2], strict=True))}, fit=fit)
    expected = {"rename": "OLD NEW", "remove": "NAME ...", "merge": "NAME OTHER ...", "add": "NAME IMAGE MASK ..."}
    raise ValueError(f"{action} {' '.join(words)}: expected {action} {expected[action]}")


def _print(content: dict[str, Any]) -> None:
    from kiloseg.inference.editing import neighbors
    from kiloseg.inference.loading import classes_of

    classes = classes_of(content)
    has_table = any(name.endswith("table.rows_CD") for name in content["model"])
    near = neighbors(content) if has_table and len(classes) > 1 else [None] * len(classes)
    print(f"{'id':>6} {'train samples':>14}  name (and the nearest other class with its cosine)")
    for label, name in enumerate(classes.names):
        samples = "" if classes.train_samples is None else f"{classes.train_samples[label]:,}"
        other = near[label]
        beside = "" if other is None else f"  ({classes.names[other[0]]}, {other[1]:.2f})"
        print(f"{classes.ids[label]:>6} {samples:>14}  {name}{beside}")
