"""What are classes worth that were never trained, but added from 1, 5 or 20 examples?

    python experiments/add_classes.py --source runs/long/... --data data/emoji
    python experiments/add_classes.py --source runs/first --data data/glyphs --examples 1 5 20 --most-new 22

SOURCE is a model of the data set's N most frequent classes (`data.num_classes`). The other classes are added as rows of its table
from examples of split train: as the mean of their pixels' embeddings, and with the new rows fitted. The network and the rows of
trained classes stay as they are. Trained and new classes are then told apart on split val, and the results go to
experiments/results/add_classes.csv. Old classes are compared on the pixels of old classes, before and after, and new ones on all
pixels; the background does not count in either mean.

Source: the claim of https://arxiv.org/abs/2012.07489 that classes are points of an embedding space; prototypes of few examples
are those of https://arxiv.org/abs/1703.05175.

Expected: experiments/results/add_classes.csv and experiments/LOG.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# This uses the library beside this file, not an installed one: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.config import Data
from kiloseg.data.classes import select_classes
from kiloseg.data.description import DatasetInfo, read_info
from kiloseg.data.index import read_index
from kiloseg.data.reading.decoding import Decoder
from kiloseg.data.reading.reader import Reader
from kiloseg.inference import editing
from kiloseg.inference.evaluation import evaluate
from kiloseg.inference.evaluation_files import Evaluation
from kiloseg.inference.examples import Embedded, embed_examples
from kiloseg.inference.loading import classes_of, content_of, model_of
from kiloseg.models import Segmenter
from kiloseg.training.evaluation import segmenter_of
from kiloseg.tuning.result_tables import append_row

COLUMNS = (
    "source", "data", "step", "trained", "new", "examples", "fit", "seed", "samples", "miou_new", "miou_old", "miou_old_before",
    "miou_trained", "absent_auroc", "seconds_per_class", "seconds_per_100_examples",
)  # fmt: skip
AT_ONCE = 16
"""Classes whose examples are in memory at the same time."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Adds classes to a trained model from few examples and measures old and new ones."""

    source: str
    """A model of some of the classes: a checkpoint, a folder of them, runs:/ID, or the name of a study."""
    data: Path
    """The data set with all classes."""
    examples: tuple[int, ...] = (1, 5, 20)
    """Numbers of examples of each new class; classes that occur in fewer samples get all of them."""
    means: bool = True
    """Whether to measure rows that are means of their pixels too, besides fitted ones."""
    most_new: int | None = None
    """Add only the first N of the classes that the model lacks. None: all."""
    samples: int | None = None
    """Evaluate only the first N validation samples. None: all."""
    seed: int = 0
    """Seed of the choice of examples."""
    runs: Path = Path("runs")
    """Folder of MLflow's database, for sources that are runs or studies."""
    results: Path = Path(__file__).resolve().parent / "results" / "add_classes.csv"
    """The file of the table."""


def main(arguments: Arguments) -> None:
    """Adds a row for every number of examples, with fitting and, unless `means` is False, without."""
    content = content_of(arguments.source, arguments.runs)
    info = read_info(arguments.data)
    model = model_of(content, arguments.source)
    names = [name for name in info.classes if name not in model.classes.names][: arguments.most_new]
    if not names or not arguments.examples:
        raise ValueError(f"{arguments.source} has all classes of {arguments.data}: expected a model of some of them")
    trained = evaluate(model, arguments.data, samples=arguments.samples).metrics["miou"]
    before = evaluate(model, arguments.data, samples=arguments.samples, by_name=True)
    segmenter, _ = segmenter_of(content)
    started = time.process_time()
    embedded = embed_classes(segmenter, arguments.data, info, names, max(arguments.examples), arguments.seed)
    embedding_s = time.process_time() - started
    total = sum(map(len, embedded.values()))
    for count in arguments.examples:
        for fit in (False, True) if arguments.means else (True,):
            few = {name: each[:count] for name, each in embedded.items()}
            started = time.process_time()
            changed = editing.add_embedded(content, few, head=segmenter.head, fit=fit)
            adding_s = time.process_time() - started
            used = sum(map(len, few.values()))
            each_s = embedding_s / total * used / len(few) + adding_s / len(few)
            after = evaluate(model_of(changed, arguments.source), arguments.data, samples=arguments.samples)
            hidden = model_of(under_other_names(changed, set(few)), arguments.source)
            after_old = evaluate(hidden, arguments.data, samples=arguments.samples, by_name=True)
            row = {
                "source": Path(arguments.source).name,
                "data": info.name,
                "step": content["step"],
                "trained": len(model.classes),
                "new": len(few),
                "examples": count,
                "fit": fit,
                "seed": arguments.seed,
                "samples": after.metrics["samples"],
                "miou_trained": trained,
                "absent_auroc": before.metrics["absent_auroc"],
                "seconds_per_class": each_s,
                "seconds_per_100_examples": 100 * embedding_s / total + adding_s / len(few),
                **old_and_new(before, after_old, after, set(few)),
            }
            append_row(arguments.results, COLUMNS, row)
            print(", ".join(f"{name} {row[name]}" for name in COLUMNS), flush=True)


def embed_classes(
    segmenter: Segmenter, data: Path, info: DatasetInfo, names: Sequence[str], count: int, seed: int
) -> dict[str, list[Embedded]]:
    """Embeds up to `count` examples of each class, from random samples of split train that show it.

    A class that no sample shows is left out.
    """
    index = read_index(data, "train", columns=["shard", "class_ids"])
    ids_of_sample = index["class_ids"].to_pylist()
    shards = index["shard"].to_pylist()
    within = _position_in_shard(shards)
    number_of = {shard.name: number for number, shard in enumerate(info.shards("train"))}
    decode = Decoder(info, select_classes(Data(path=str(data)), info))
    generator = np.random.default_rng(seed)
    found: dict[str, list[Embedded]] = {}
    with Reader(data, info.shards("train")) as reader:
        for start in range(0, len(names), AT_ONCE):
            examples, owners = [], []
            for name in names[start : start + AT_ONCE]:
                class_id = info.classes.index(name)
                where = [row for row, ids in enumerate(ids_of_sample) if class_id in ids]
                for row in generator.permutation(where)[:count]:
                    image, labels = decode(reader.read(number_of[shards[row]], within[row]))
                    examples.append((image, labels == class_id))
                    owners.append(name)
            for name, one in zip(owners, embed_examples(segmenter, examples), strict=True):
                found.setdefault(name, []).append(one)
    return found


def _position_in_shard(shards: Sequence[str]) -> list[int]:
    seen: dict[str, int] = {}
    positions = []
    for shard in shards:
        positions.append(seen.get(shard, 0))
        seen[shard] = positions[-1] + 1
    return positions


def under_other_names(content: dict[str, Any], new: set[str]) -> dict[str, Any]:
    """Returns the model with names for its new classes that no data set has, so that only pixels of old classes count.

    A pixel of an old class that is taken for a new one is still wrong.
    """
    names = [f"{name} (added)" if name in new else name for name in classes_of(content).names]
    return editing.annotate(content, names=names)


def old_and_new(before: Evaluation, after_old: Evaluation, after: Evaluation, new: set[str]) -> dict[str, float]:
    """Returns the mean IoU of the new classes, and of the old ones after and before, without the background."""
    background = None if before.classes.background is None else before.classes.names[before.classes.background]

    def mean(evaluation: Evaluation, wanted: Callable[[str], bool]) -> float:
        rows = [row for row in evaluation.table if row["name"] != background and row["iou"] is not None]
        kept = [row["iou"] for row in rows if wanted(row["name"])]
        return float(np.mean(kept)) if kept else float("nan")

    old = set(before.classes.names)
    return {
        "miou_new": mean(after, new.__contains__),
        "miou_old": mean(after_old, old.__contains__),
        "miou_old_before": mean(before, old.__contains__),
    }


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
