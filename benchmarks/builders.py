"""Images a second of the coco_lvis builder, and what reading its annotations costs beside pycocotools' own reader.

    python benchmarks/builders.py
    python benchmarks/builders.py --images 5000 --processes 1 2 4

Draws a tree in the layout of COCO and LVIS: crops of the photographs that scikit-learn ships as JPEG of 640 x 480, and for
each image 11 objects as polygons and 4 stuff regions as compressed RLE, about as many and as detailed as in the real
files. Builds it from the beginning in each round; rates are medians over rounds and count all that a build does after the
annotations are sorted: starting processes, reading, drawing, compressing, digests and the index.
"""

from __future__ import annotations

import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask
import tyro
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 480, 640


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Speed of the coco_lvis builder."""

    images: int = 2000
    """Images in split train; a tenth more are drawn as val."""
    objects: int = 11
    """LVIS objects in an image."""
    points: int = 55
    """Corners of an object's polygon; 55 give the 870 bytes an annotation of lvis_v1_train.json."""
    processes: tuple[int, ...] = (1, 2)
    """Processes to measure with."""
    rounds: int = 3
    """Times each build is run."""
    csv: Path = Path("runs/benchmarks/builders.csv")
    """Where the table is written."""


def draw_tree(root: Path, arguments: Arguments) -> None:
    """Writes images and annotations: train2017, val2017, annotations/{lvis_v1,stuff}_*.json."""
    rng = np.random.default_rng(0)
    photographs = load_photographs()
    for folder in ("train2017", "val2017", "annotations"):
        (root / folder).mkdir()
    num_val = max(arguments.images // 10, 1)
    first_id = 1
    for split, count in (("train", arguments.images), ("val", num_val)):
        lvis = {"images": [], "annotations": [], "categories": [{"id": c, "name": f"c{c}"} for c in range(1, 1204)]}
        stuff = {"images": [], "annotations": [], "categories": []}
        for image_id in range(first_id, first_id + count):
            path = f"{split}2017/{image_id:012}.jpg"
            photograph = photographs[image_id % len(photographs)]
            top = rng.integers(photograph.shape[0] - HEIGHT + 1)
            crop = np.roll(photograph[top : top + HEIGHT, :WIDTH], int(rng.integers(WIDTH)), axis=1)
            Image.fromarray(np.ascontiguousarray(crop)).save(root / path, quality=92)
            record = {"id": image_id, "height": HEIGHT, "width": WIDTH}
            lvis["images"].append({**record, "coco_url": f"http://images.cocodataset.org/{path}"})
            stuff["images"].append({**record, "file_name": Path(path).name})
            for _ in range(arguments.objects):
                annotation = {"image_id": image_id, "category_id": int(rng.integers(1, 1204)), "id": 0, "area": 1.0}
                lvis["annotations"].append({**annotation, "segmentation": [polygon(rng, arguments.points)]})
            for number, rle in enumerate(stuff_regions(rng)):
                annotation = {"image_id": image_id, "category_id": 92 + int(rng.integers(91)), "id": number}
                stuff["annotations"].append({**annotation, "segmentation": rle})
        first_id += count
        (root / "annotations" / f"lvis_v1_{split}.json").write_text(json.dumps(lvis))
        (root / "annotations" / f"stuff_{split}2017.json").write_text(json.dumps(stuff))


def load_photographs() -> list[np.ndarray]:
    """uint8 of shape (>= HEIGHT, WIDTH, 3)."""
    from sklearn.datasets import load_sample_images

    images = [Image.fromarray(image) for image in load_sample_images().images]
    return [np.asarray(image.resize((WIDTH, max(HEIGHT, image.height)))) for image in images]


def polygon(rng: np.random.Generator, points: int) -> list[float]:
    """A ragged outline; diameters are spread evenly over their logarithm from 8 to 300 pixels."""
    radius = np.exp(rng.uniform(np.log(4), np.log(150)))
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = radius * rng.uniform(0.7, 1.1, points)
    x = np.clip(rng.uniform(0, WIDTH) + radii * np.cos(angles), 0, WIDTH)
    y = np.clip(rng.uniform(0, HEIGHT) + radii * np.sin(angles), 0, HEIGHT)
    return np.stack([x, y], axis=1).round(2).ravel().tolist()


def stuff_regions(rng: np.random.Generator) -> list[dict[str, object]]:
    """Four regions with wavy borders that share the image, as compressed RLE."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.sin(x / rng.uniform(60, 120) + rng.uniform(0, 6)) + np.cos(y / rng.uniform(50, 90)) + rng.uniform(-1, 1)
    waves = waves + 0.3 * np.sin(x / 11 + y / 13)
    labels = (waves > 0) + 2 * (y > rng.uniform(150, 330))
    rles = [pycocotools.mask.encode(np.asfortranarray(labels == region, dtype=np.uint8)) for region in range(4)]
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]


READERS = {
    "coco_json.CocoJson": "from coco_json import CocoJson as read",
    "pycocotools.coco.COCO": "from pycocotools.coco import COCO as read",
}


def measure_reader(name: str, path: Path) -> tuple[float, float]:
    """Seconds and GiB of memory that reading a file adds to a fresh process."""
    source = f"""
import resource, sys, time
from pathlib import Path
{READERS[name]}
def gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before, begin = gib(), time.perf_counter()
content = read(Path({str(path)!r}))
print(time.perf_counter() - begin, gib() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT / "datasets", check=True, capture_output=True, text=True
    )
    seconds, gib = done.stdout.splitlines()[-1].split()
    return float(seconds), float(gib)


def measure_build(root: Path, out: Path, processes: int) -> float:
    """Seconds of a build by command, with its annotations sorted already."""
    builder = [sys.executable, str(ROOT / "datasets" / "coco_lvis.py"), "--root", str(root), "--out", str(out)]
    begin = time.perf_counter()
    done = subprocess.run([*builder, "--processes", str(processes)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the build failed:\n{done.stderr}")
    return time.perf_counter() - begin


def main(arguments: Arguments) -> None:
    """Measures readers and builds and prints the tables."""
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory(prefix="kiloseg-") as folder:
        root = Path(folder) / "coco"
        root.mkdir()
        print(f"drawing {arguments.images + max(arguments.images // 10, 1):,} images")
        draw_tree(root, arguments)
        lvis = root / "annotations" / "lvis_v1_train.json"
        megabytes = lvis.stat().st_size / 1e6
        print(f"\n{'reading lvis_v1_train.json':32}{'MB/s':>10}{'GiB per GB':>12}   of {megabytes:.0f} MB")
        for name in READERS:
            measured = [measure_reader(name, lvis) for _ in range(arguments.rounds)]
            rate = megabytes / statistics.median(seconds for seconds, _ in measured)
            memory = statistics.median(gib for _, gib in measured) / (megabytes / 1000)
            print(f"{name:32}{rate:>10.0f}{memory:>12.2f}")
            rows.append([name, 1, round(rate, 1), "MB/s", round(memory, 3)])
        images = arguments.images + max(arguments.images // 10, 1)
        begin = time.perf_counter()
        measure_build(root, Path(folder) / "first", arguments.processes[0])
        first = time.perf_counter() - begin
        seconds: dict[int, list[float]] = {processes: [] for processes in arguments.processes}
        for number in range(arguments.rounds):
            for processes, measured_seconds in seconds.items():
                measured_seconds.append(measure_build(root, Path(folder) / f"{number}-{processes}", processes))
        print(f"\n{'building':32}{'images/s':>10}{'a process':>12}   of {images:,} images")
        for processes, measured_seconds in seconds.items():
            rate = images / statistics.median(measured_seconds)
            print(f"{f'{processes} processes':32}{rate:>10.1f}{rate / processes:>12.1f}")
            rows.append(["build", processes, round(rate, 1), "images/s", round(rate / processes, 1)])
        print(f"first build, annotations to sort: {first:.1f} s")
    print(f"largest process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB")
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        csv.writer(file).writerows([["case", "processes", "rate", "unit", "per GB or process"], *rows])
    print(arguments.csv)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
