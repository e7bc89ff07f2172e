"""How does the peak memory of an evaluation grow with the number of classes and with the size of the image?

    python benchmarks/evaluation_memory.py
    python benchmarks/evaluation_memory.py --classes 1000 100000 --sides 512 4096

Each cell evaluates an untrained model with sliding windows of 256 px on one image, in a process of its own. What is printed is the
peak of its resident memory, in MiB, beyond what it holds once the model is loaded. An image takes 3 bytes a pixel, its labels 8,
and its predictions 8; that part has to grow.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# This uses the library beside this file, not an installed one.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli

TILE = 256
DIMENSIONS = 16
CELL = "KILOSEG_EVALUATION_CELL"
"""Environment variable that holds the cell a process measures."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures the peak memory of evaluations."""

    classes: tuple[int, ...] = (100, 10_000, 60_000)
    """Class counts, at the first side."""
    sides: tuple[int, ...] = (512, 1024, 2048)
    """Sides of the image in pixels, at the first class count."""


def main(arguments: Arguments) -> None:
    """Prints a row for every cell."""
    cells = [(count, arguments.sides[0]) for count in arguments.classes]
    cells += [(arguments.classes[0], side) for side in arguments.sides[1:]]
    print("classes   side   bytes a pixel that must grow, MiB   peak beyond the model, MiB")
    for count, side in cells:
        environment = os.environ | {CELL: json.dumps([count, side])}
        done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{count} classes at {side} px failed:\n{done.stderr}")
        print(f"{count:>7,}  {side:>5,}   {19 * side * side / 2**20:>33.0f}   {float(done.stdout):>26.0f}", flush=True)


def measure(count: int, side: int) -> None:
    """Evaluates on one image and prints the growth of the peak resident memory in MiB."""
    import torch

    from kiloseg.config import Config, Model
    from kiloseg.data.description import DatasetInfo, write_info
    from kiloseg.data.index import write_index
    from kiloseg.data.writing.shard import Sample, write_shard
    from kiloseg.inference.counting import Views
    from kiloseg.inference.evaluation import evaluate
    from kiloseg.inference.loading import model_of
    from kiloseg.models import Segmenter
    from kiloseg.overrides import flatten, override

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, count, (side // 32, side // 32))
        mask = np.repeat(np.repeat(coarse, 32, axis=0), 32, axis=1)
        image = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
        sample = Sample(key="only", image=image, mask=mask, meta={})
        shard, rows = write_shard(out / "val-000000.tar", [sample], num_classes=count)
        names = [f"class {number}" for number in range(count)]
        info = DatasetInfo(
            name="one",
            classes=names,
            background=None,
            license="none",
            command="benchmark",
            recipe={},
            splits={"val": [shard]},
        )
        write_index(out, [{"split": "val", **row} for row in rows])
        write_info(out, info)
        del image, mask, sample
        config = override(
            Config(model=Model(arch="fpn", backbone="test_resnet", embed_dim=DIMENSIONS)),
            {"data.path": str(out), "data.loader_workers": 0},
        )
        record = {
            "ids": list(range(count)), "names": names, "background": None, "train_samples": None, "data": "one", "digest": "",
        }  # fmt: skip
        state = Segmenter(config.model, count).state_dict()
        content = {
            "config": flatten(config),
            "num_classes": count,
            "classes": record,
            "model": state,
            "location": "here",
        }
        model = model_of(content, "here", device="cpu")
        with torch.no_grad():  # libraries and kernels are loaded by their first use
            model.segmenter.head.candidates(model.outputs(torch.zeros((1, 3, 64, 64), dtype=torch.uint8)), (64, 64), 5)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        evaluate(model, out, views=Views(tile=TILE, overlap=64), progress=False)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    if CELL in os.environ:
        measure(*json.loads(os.environ[CELL]))
    else:
        cli.run(main, Arguments, __doc__)
