"""Measures images per second of the coco_lvis builder, and the cost of sorting its annotations against pycocotools' own reader.

    python benchmarks/builders.py
    python benchmarks/builders.py --images 5000 --processes 1 2 4

Draws a tree in the layout of COCO and LVIS: crops of the photographs that scikit-learn ships as JPEG of 640 x 480, and for
each image 11 objects as polygons and 4 stuff regions as compressed RLE, about as many and as detailed as in the real
files. Each round builds it from the beginning, as a command; rates count all that it does (starting Python, its
processes, reading, drawing, compressing, digests, the index), but for sorting the annotations, which is once for a
machine and measured apart, on more of them. CPU seconds are of all processes together: what a core to itself would take.
"""

from __future__ import annotations

import csv
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import tyro
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 480, 640


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures the speed of the coco_lvis builder."""

    images: int = 2000
    """The number of images to build, all in split train."""
    annotated: int = 20000
    """The number of images whose annotations are sorted; LVIS has 100,170."""
    objects: int = 11
    """The number of LVIS objects in an image."""
    points: int = 55
    """The number of corners of an object's polygon; 55 give the 870 bytes per annotation of lvis_v1_train.json."""
    processes: tuple[int, ...] = (1, 2)
    """The numbers of processes to build with."""
    rounds: int = 3
    """How often each is run."""
    csv: Path = Path("runs/benchmarks/builders.csv")
    """The file that the table is written to."""


def write_annotations(root: Path, num_images: int, arguments: Arguments) -> None:
    """Writes annotations/lvis_v1_train.json and annotations/stuff_train2017.json."""
    rng = np.random.default_rng(0)
    regions = [stuff_regions(rng) for _ in range(64)]
    lvis: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": category_id, "name": f"c{category_id}"} for category_id in range(1, 1204)],
    }
    stuff: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    for image_id in range(1, num_images + 1):
        record = {"id": image_id, "height": HEIGHT, "width": WIDTH}
        name = f"{image_id:012}.jpg"
        lvis["images"].append({**record, "coco_url": f"http://images.cocodataset.org/train2017/{name}"})
        stuff["images"].append({**record, "file_name": name})
        for category_id in rng.integers(1, 1204, arguments.objects).tolist():
            annotation = {"image_id": image_id, "category_id": category_id, "id": len(lvis["annotations"]), "area": 1.0}
            lvis["annotations"].append({**annotation, "segmentation": [polygon(rng, arguments.points)]})
        for rle in regions[image_id % len(regions)]:
            annotation = {"image_id": image_id, "category_id": int(rng.integers(92, 183)), "id": image_id}
            stuff["annotations"].append({**annotation, "segmentation": rle})
    # In the real files neighbors are of different images, so they are here.
    rng.shuffle(lvis["annotations"])
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "lvis_v1_train.json").write_text(json.dumps(lvis))
    (root / "annotations" / "stuff_train2017.json").write_text(json.dumps(stuff))


def polygon(rng: np.random.Generator, points: int) -> list[float]:
    """Returns a ragged outline; diameters are spread evenly over their logarithm from 8 to 300 pixels."""
    radius = np.exp(rng.uniform(np.log(4), np.log(150)))
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = radius * rng.uniform(0.7, 1.1, points)
    x = np.clip(rng.uniform(0, WIDTH) + radii * np.cos(angles), 0, WIDTH)
    y = np.clip(rng.uniform(0, HEIGHT) + radii * np.sin(angles), 0, HEIGHT)
    return np.stack([x, y], axis=1).round(2).ravel().tolist()


def stuff_regions(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns four regions with wavy borders that share the image, as compressed RLE."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.sin(x / rng.uniform(60, 120) + rng.uniform(0, 6)) + np.cos(y / rng.uniform(50, 90)) + rng.uniform(-1, 1)
    labels = (waves + 0.3 * np.sin(x / 11 + y / 13) > 0) + 2 * (y > rng.uniform(150, 330))
    rles = [pycocotools.mask.encode(np.asfortranarray(labels == region, dtype=np.uint8)) for region in range(4)]
    return [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]


def write_images(root: Path, num_images: int) -> None:
    """Writes train2017/*.jpg."""
    from sklearn.datasets import load_sample_images

    def crops() -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        for photograph in itertools.cycle(load_sample_images().images):
            enlarged = np.asarray(Image.fromarray(photograph).resize((800, 600)))
            top, left = rng.integers(600 - HEIGHT), rng.integers(800 - WIDTH)
            yield enlarged[top : top + HEIGHT, left : left + WIDTH]

    (root / "train2017").mkdir()
    for image_id, crop in zip(range(1, num_images + 1), crops(), strict=False):
        Image.fromarray(crop).save(root / "train2017" / f"{image_id:012}.jpg", quality=92)


READERS = {
    "sorted into Parquet": """
import coco_lvis
coco_lvis.index_annotations(root, Path(folder), False)
""",
    "pycocotools COCO(), read only": """
from pycocotools.coco import COCO
content = [COCO(path) for path in (root / "annotations").iterdir()]
""",
}


def measure_reader(source: str, root: Path) -> tuple[float, float]:
    """CPU seconds, and GiB added to the peak memory of a fresh process (Linux), of reading all annotations of a tree."""
    program = f"""
import re, resource, tempfile, time
from pathlib import Path
import numpy, pyarrow.parquet, pycocotools.mask
import kiloseg.data.writing.build
def peak():  # not ru_maxrss, which a process begins with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
root, before, begin = Path({str(root)!r}), peak(), time.process_time()
with tempfile.TemporaryDirectory() as folder:
{"".join(f"    {line}" for line in source.strip().splitlines(keepends=True))}
print(time.process_time() - begin, peak() - before)
"""
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, cwd=ROOT / "datasets", check=True, capture_output=True, text=True)
    seconds, gib = done.stdout.splitlines()[-1].split()
    return float(seconds), float(gib)


def measure_build(root: Path, out: Path, processes: int) -> tuple[float, float]:
    """Seconds of a build, and CPU seconds of all its processes."""
    builder = [sys.executable, str(ROOT / "datasets" / "coco_lvis.py"), "--root", str(root), "--out", str(out)]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*builder, "--processes", str(processes)], capture_output=True, text=True)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"the build failed:\n{done.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Arguments) -> None:
    """Measures and prints the tables."""
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory(prefix="kiloseg-") as name:
        folder = Path(name)
        write_annotations(folder / "jsons", arguments.annotated, arguments)
        megabytes = sum(path.stat().st_size for path in (folder / "jsons" / "annotations").iterdir()) / 1e6
        print(f"\n{megabytes:.0f} MB of annotations, {arguments.annotated:,} images")
        print(f"{'':32}{'CPU s':>10}{'GiB':>10}")
        measured: dict[Any, list[tuple[float, float]]] = {reader: [] for reader in READERS}
        for _ in range(arguments.rounds):
            for reader, source in READERS.items():
                measured[reader].append(measure_reader(source, folder / "jsons"))
        for reader, results in measured.items():
            seconds, gib = (statistics.median(column) for column in zip(*results, strict=True))
            print(f"{reader:32}{seconds:>10.1f}{gib:>10.2f}")
            rows.append([reader, round(seconds, 2), round(gib, 3), "CPU s, GiB"])
        write_annotations(folder / "coco", arguments.images, arguments)
        write_images(folder / "coco", arguments.images)
        measure_build(folder / "coco", folder / "first", max(arguments.processes))  # sorts the annotations
        measured = {processes: [] for processes in arguments.processes}
        for number in range(arguments.rounds):
            for processes in arguments.processes:
                out = folder / f"{number}-{processes}"
                measured[processes].append(measure_build(folder / "coco", out, processes))
        print(f"\n{arguments.images:,} images\n{'':32}{'images/s':>10}{'images/CPU s':>14}")
        for processes, results in measured.items():
            rate, cpu_rate = (arguments.images / statistics.median(column) for column in zip(*results, strict=True))
            print(f"{f'coco_lvis, {processes} processes':32}{rate:>10.1f}{cpu_rate:>14.1f}")
            rows.append([f"{processes} processes", round(rate, 1), round(cpu_rate, 1), "images/s, images/CPU s"])
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        csv.writer(file).writerows([["case", "first", "second", "units"], *rows])
    print(f"\n{arguments.csv}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
