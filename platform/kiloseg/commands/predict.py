"""Labels images with a trained model; for each it writes a map of class ids, a picture with a legend, and a JSON of regions.

    kiloseg predict runs/train photo.jpg --out predicted
    kiloseg predict my-study 'photos/**/*.jpg' --out predicted

An image whose NAME.json already exists is skipped, so an interrupted command continues where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Predict images."""

    source: tyro.conf.Positional[str]
    """A checkpoint, a folder of them, runs:/ID, or the name of a study."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders to search for images, URLs (https://..., s3://...), or patterns in quotes."""
    out: Path
    """Folder for NAME.labels.png, NAME.overlay.png and NAME.json. For an image in a given folder, NAME is its path there."""
    html: bool = False
    """Also write NAME.html, a page that shows the class name and confidence under the pointer and can hide classes."""
    confidence: bool = False
    """Also write NAME.confidence.png, a gray image whose values are 255 x the confidence."""
    overwrite: bool = False
    """Predict images again whose output already exists."""
    device: str | None = None
    """Where the network runs: cpu, cuda, cuda:1, ... None: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network. auto: bf16 on a GPU that supports it, else fp32."""
    tile: int = 1024
    """Side in pixels of the tiles that larger images are cut into, a multiple of 32; memory grows with it."""
    overlap: int = 256
    """Pixels that neighboring tiles share, a multiple of 32 less than the tile."""
    max_pixels: int = 89_478_485
    """Images with more pixels are skipped, since a small file can claim any size."""
    runs: Path = Path("runs")
    """Folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server."""


def main(arguments: Arguments) -> int:
    """Writes the files and reports and skips unreadable images. Returns 1 if some were unreadable and no image has output."""
    from PIL import Image
    from tqdm import tqdm

    from kiloseg.inference.inputs import find_images
    from kiloseg.inference.loading import load
    from kiloseg.inference.result import output_files

    Image.MAX_IMAGE_PIXELS = arguments.max_pixels
    found = find_images(arguments.images)
    model = load(arguments.source, device=arguments.device, precision=arguments.precision, runs=arguments.runs)
    done = skipped = bad = 0
    for name, image in tqdm(found, desc="predict", disable=None):
        if not arguments.overwrite and output_files(arguments.out, name)["json"].exists():
            skipped += 1
            continue
        try:
            result = model(image, tile=arguments.tile, overlap=arguments.overlap)
        except ValueError as error:
            bad += 1
            tqdm.write(f"passed over: {error}", file=sys.stderr)
            continue
        # Without NAME.json, the other files are the remains of an interrupted command.
        result.save(arguments.out, name, page=arguments.html, confidence=arguments.confidence, overwrite=True)
        done += 1
    parts = [f"{done:,} predicted"]
    parts += [f"{skipped:,} already existed (--overwrite predicts them again)"] if skipped else []
    parts += [f"{bad:,} could not be read"] if bad else []
    print(f"{arguments.out}: {', '.join(parts)}")
    return int(bad > 0 and done + skipped == 0)
