"""Lists the classes of a trained model, or changes the classes without training.

    kiloseg classes SOURCE list
    kiloseg classes SOURCE rename OLD NEW --out FOLDER
    kiloseg classes SOURCE remove NAME ... --out FOLDER
    kiloseg classes SOURCE merge NAME OTHER ... --out FOLDER          one class, under the first name
    kiloseg classes SOURCE add NAME IMAGE MASK [IMAGE MASK ...] --out FOLDER
    kiloseg classes SOURCE group table FILE.csv --out FOLDER          columns: class, largest group, ..., smallest group
    kiloseg classes SOURCE group clusters 10 100 --out FOLDER         clusters of the class table: 10 groups, 100 smaller ones
    kiloseg classes SOURCE group synsets LVIS.json WORDNET/dict --out FOLDER
    kiloseg classes SOURCE unknown DATA --out FOLDER                  finds from when on a pixel shows none of the classes
    kiloseg classes SOURCE page --out FILE.html                       the classes as points, with their nearest neighbors

A mask has the size of its image, and its nonzero pixels mark the class. The result of a change is a checkpoint in FOLDER, which
every command accepts as its SOURCE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

Action = Literal["list", "rename", "remove", "merge", "add", "group", "unknown", "page"]

EXPECTED = {
    "rename": "OLD NEW",
    "remove": "NAME ...",
    "merge": "NAME OTHER ...",
    "add": "NAME IMAGE MASK ...",
    "group": "table FILE.csv, clusters NUMBER ..., or synsets LVIS.json WORDNET/dict",
    "unknown": "DATA",
    "page": "--out FILE.html",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """List or change the classes of a model."""

    source: tyro.conf.Positional[str]
    """A checkpoint, a folder of them, an exported folder, runs:/ID, or the name of a study."""
    action: tyro.conf.Positional[Action]
    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names and files for the action, as shown above."""
    out: Path | None = None
    """Folder for the changed model; must not hold checkpoints yet. For page: the file."""
    fit: bool = False
    """For add: fit the new row alone to the examples, which takes a second or so, instead of taking their mean."""
    keep: float = 0.95
    """For unknown: the share of the pixels of known classes that must not be called unknown."""
    evaluation: Path | None = None
    """For page: folder of a `kiloseg evaluate`, whose IoU can color the classes."""
    overwrite: bool = False
    """For page: replace an existing file."""
    log: bool = True
    """For page: if the model belongs to a run in MLflow, also log the page there, as classes/..."""
    runs: Path = Path("runs")
    """Folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server."""

    def __post_init__(self) -> None:
        if not 0 < self.keep < 1:
            raise ValueError(f"--keep {self.keep}: expected a share above 0 and below 1")


def main(arguments: Arguments) -> None:
    """Prints the classes, or writes a model with changed classes or the page."""
    from kiloseg.inference.loading import content_of
    from kiloseg.training.checkpoint import save_checkpoint
    from kiloseg.training.checkpoint_names import newest_step

    if arguments.action == "list":
        _print(content_of(arguments.source, arguments.runs))
        return
    if arguments.out is None:
        raise ValueError(
            f"--out is missing: give a folder for the model after {arguments.action}, or the file of the page"
        )
    if arguments.action == "page":
        _write_page(arguments, arguments.out)
        return
    if newest_step(arguments.out) or any(arguments.out.glob("step-*.pt")):
        raise ValueError(f"--out {arguments.out} holds checkpoints already; give another folder")
    content = content_of(arguments.source, arguments.runs)
    changed = _change(content, arguments)
    path = save_checkpoint(arguments.out, content["step"], changed, keep=1)
    print(f"{path}: {changed['num_classes']:,} classes")


def _change(content: dict[str, Any], arguments: Arguments) -> dict[str, Any]:
    from kiloseg.inference import editing

    action, words = arguments.action, arguments.words
    if action == "rename" and len(words) == 2:
        return editing.rename(content, *words)
    if action == "remove" and words:
        return editing.remove(content, words)
    if action == "merge" and len(words) >= 2:
        return editing.merge(content, words[0], words[1:])
    if action == "add" and len(words) >= 3 and len(words) % 2:
        pairs = list(zip(words[1::2], words[2::2], strict=True))
        return editing.add(content, {words[0]: pairs}, fit=arguments.fit)
    if action == "group" and len(words) >= 2:
        return _group(content, words[0], words[1:])
    if action == "unknown" and len(words) == 1:
        return _calibrate(content, words[0], arguments)
    raise ValueError(f"{action} {' '.join(words)}: expected {action} {EXPECTED[action]}")


def _group(content: dict[str, Any], kind: str, words: Sequence[str]) -> dict[str, Any]:
    from kiloseg.inference import editing, group_sources
    from kiloseg.inference.groups import levels_of
    from kiloseg.inference.loading import classes_of

    classes = classes_of(content)
    if kind == "table" and len(words) == 1:
        paths = group_sources.groups_of_table(classes, words[0])
    elif kind == "synsets" and len(words) == 2:
        paths = group_sources.groups_of_synsets(classes, *words)
    elif kind == "clusters" and all(word.isdecimal() for word in words):
        rows_CD = editing.class_table(content)
        paths = group_sources.groups_of_clusters(classes, rows_CD, [int(word) for word in words])
    else:
        raise ValueError(f"group {kind} {' '.join(words)}: expected {EXPECTED['group']}")
    changed = editing.annotate(content, groups=paths)
    alone = sum(not path for path in paths)
    for number, level in enumerate(levels_of(classes_of(changed)), start=1):
        groups = sum(1 for key in level.keys if key[0])
        print(f"level {number}: {groups:,} groups" + (f", and {alone:,} classes without a group" if alone else ""))
    return changed


def _calibrate(content: dict[str, Any], data: str, arguments: Arguments) -> dict[str, Any]:
    from kiloseg.inference import editing
    from kiloseg.inference.evaluation import evaluate
    from kiloseg.inference.loading import model_of

    evaluation = evaluate(model_of(content, arguments.source), data)
    below = evaluation.familiarity.quantile(1 - arguments.keep)
    if below != below:
        raise ValueError(f"{arguments.source} ranks no classes, so that nothing says how familiar a pixel is")
    auroc = evaluation.metrics["absent_auroc"]
    told = "" if auroc is None else f"; AUROC against classes of {data} that the model does not have: {auroc:.4f}"
    print(f"unknown below {below:.4f}, which keeps {arguments.keep:.1%} of the pixels of known classes{told}")
    return editing.annotate(content, known_from=below)


def _write_page(arguments: Arguments, out: Path) -> None:
    from kiloseg.inference.loading import content_of
    from kiloseg.inference.table_page import table_page
    from kiloseg.storage.atomic import write_whole
    from kiloseg.tracking.checkpoints import run_of_source

    if arguments.words:
        raise ValueError(f"page {' '.join(arguments.words)}: expected page {EXPECTED['page']}")
    if out.suffix != ".html" or (out.exists() and not arguments.overwrite):
        raise ValueError(
            f"--out {out}: expected the name of a file that ends in .html"
            if out.suffix != ".html"
            else f"{out} exists; give --overwrite, or another --out"
        )
    content = content_of(arguments.source, arguments.runs)
    write_whole(out, table_page(content, arguments.source, arguments.evaluation).encode())
    print(out)
    run = run_of_source(arguments.source, arguments.runs) if arguments.log else None
    if run is not None:
        run.log_file(out, "classes")
        print(f"logged to run {run.run_id} in MLflow, artifacts/classes")


def _print(content: dict[str, Any]) -> None:
    from kiloseg.inference.editing import has_table, neighbors
    from kiloseg.inference.loading import classes_of

    classes = classes_of(content)
    near = neighbors(content, 1) if has_table(content) and len(classes) > 1 else [[]] * len(classes)
    print(f"{'id':>6} {'train samples':>14}  name (and the nearest other class with its cosine)")
    for label, name in enumerate(classes.names):
        samples = "" if classes.train_samples is None else f"{classes.train_samples[label]:,}"
        beside = "".join(f"  ({classes.names[other]}, {cosine:.2f})" for other, cosine in near[label])
        groups = f"  [{' > '.join(classes.groups[label])}]" if classes.groups and classes.groups[label] else ""
        print(f"{classes.ids[label]:>6} {samples:>14}  {name}{beside}{groups}")
