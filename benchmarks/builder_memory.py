"""Measures time and peak memory of building many small images, and one image with very many polygons, by datasets/folder.py.

    python benchmarks/builder_memory.py
    python benchmarks/builder_memory.py --images 10000 --polygons 5000

Draws images of noise, each with a mask of ids and with polygons in one COCO json, and runs the command once for either form. A last
run is of one image with all its polygons. Memory is the sum over all processes of the command of what each holds in memory, read
every tenth of a second; pages that processes share count once for each, so it is an upper bound.
"""

from __future__ import annotations

import csv
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NUM_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measures time and peak memory of datasets/folder.py."""

    images: int = 100_000
    """The number of images."""
    size: int = 64
    """Their height and width in pixels."""
    objects: int = 5
    """The number of polygons in each."""
    polygons: int = 50_000
    """The number of polygons in the one image of the last run."""
    large: int = 4096
    """The height and width of that image."""
    processes: int = 1
    """The number of processes of a build."""
    csv: Path = Path("runs/benchmarks/builder_memory.csv")
    """The file that the table is written to."""


def polygons(rng: np.random.Generator, count: int, size: int, radius: float) -> np.ndarray:
    """Returns outlines of 12 corners around places all over the image, of shape (count, 24)."""
    middles = rng.uniform(0, size, (count, 1, 2))
    angles = np.sort(rng.uniform(0, 2 * np.pi, (count, 12)))
    radii = radius * rng.uniform(0.5, 1, (count, 12))
    corners = middles + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=2)
    return corners.clip(0, size).round(2).reshape(count, 24)


def write_tree(root: Path, arguments: Arguments) -> None:
    """Writes images/*.jpg, masks/*.png, classes.csv and instances.json."""
    rng = np.random.default_rng(0)
    side = arguments.size
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    names = [f"class {class_id}" for class_id in range(NUM_CLASSES)]
    (root / "classes.csv").write_text("id,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(names)))
    images, annotations = [], []
    for number in range(arguments.images):
        name = f"{number:06}"
        pixels = rng.integers(0, 256, (side // 4, side // 4, 3), np.uint8).repeat(4, axis=0).repeat(4, axis=1)
        Image.fromarray(pixels).save(root / "images" / f"{name}.jpg")
        blocks = rng.integers(0, NUM_CLASSES, (side // 16, side // 16)).astype(np.uint16)
        Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1)).save(root / "masks" / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.jpg", "height": side, "width": side})
        outlines = polygons(rng, arguments.objects, side, side / 4).tolist()
        for outline, category in zip(outlines, rng.integers(0, NUM_CLASSES, arguments.objects).tolist(), strict=True):
            annotations.append({"image_id": number, "category_id": category, "segmentation": [outline]})
    write_json(root / "instances.json", images, annotations)


def write_large(root: Path, arguments: Arguments) -> None:
    """Writes an image and a second, small one (for val), and a json with all polygons on the first."""
    rng = np.random.default_rng(1)
    side = arguments.large
    (root / "images").mkdir(parents=True)
    images = [
        {"id": number, "file_name": f"{split}/{split}.jpg", "height": size, "width": size}
        for number, (split, size) in enumerate((("train", side), ("val", 64)))
    ]
    for image in images:
        path = root / "images" / str(image["file_name"])
        path.parent.mkdir()
        Image.new("RGB", (int(str(image["width"])), int(str(image["height"])))).save(path)
    outlines = polygons(rng, arguments.polygons, side, 30).tolist()
    categories = rng.integers(0, NUM_CLASSES, arguments.polygons).tolist()
    annotations = [
        {"image_id": 0, "category_id": category, "segmentation": [outline]}
        for outline, category in zip(outlines, categories, strict=True)
    ]
    annotations.append({"image_id": 1, "category_id": 0, "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]]})
    write_json(root / "instances.json", images, annotations)


def write_json(path: Path, images: list[dict[str, object]], annotations: list[dict[str, object]]) -> None:
    """Writes a COCO json."""
    categories = [{"id": class_id, "name": f"class {class_id}"} for class_id in range(NUM_CLASSES)]
    numbered = [{"id": number, **annotation} for number, annotation in enumerate(annotations)]
    path.write_text(json.dumps({"images": images, "annotations": numbered, "categories": categories}))


def held_gib(process_id: int) -> float:
    """Returns what a process and its descendants hold in memory, in GiB (Linux)."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
        children = Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()
    except OSError:  # it ended
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return (int(found[1]) / 2**20 if found else 0.0) + sum(held_gib(int(child)) for child in children)


def measure(*options: str | Path) -> tuple[float, float, float]:
    """Returns seconds, CPU seconds and peak GiB of the command with these options."""
    command = [sys.executable, str(ROOT / "datasets" / "folder.py"), *map(str, options)]
    before, begin, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, held_gib(process.pid))
            time.sleep(0.1)
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-3000:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak


def main(arguments: Arguments) -> None:
    """Measures and prints the table."""
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory(prefix="kiloseg-") as name:
        folder = Path(name)
        write_tree(folder / "many", arguments)
        write_large(folder / "large", arguments)
        images = ("--images", folder / "many" / "images")
        cases = {
            f"{arguments.images:,} masks": (
                *images, "--masks", folder / "many" / "masks", "--names", folder / "many" / "classes.csv"
            ),
            f"{arguments.images:,} images with {arguments.objects} polygons": (
                *images, "--annotations", folder / "many" / "instances.json"
            ),
            f"1 image with {arguments.polygons:,} polygons": (
                "--images", folder / "large" / "images", "--annotations", folder / "large" / "instances.json"
            ),
        }  # fmt: skip
        print(f"{'':40}{'s':>10}{'CPU s':>10}{'GiB':>8}", flush=True)
        for case, options in cases.items():
            out = folder / str(len(rows))
            seconds, cpu, gib = measure(*options, "--out", out, "--processes", str(arguments.processes))
            print(f"{case:40}{seconds:>10.1f}{cpu:>10.1f}{gib:>8.2f}", flush=True)
            rows.append([case, round(seconds, 1), round(cpu, 1), round(gib, 3)])
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        csv.writer(file).writerows([["case", "seconds", "CPU seconds", "peak GiB"], *rows])
    print(f"\n{arguments.csv}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
