"""Labels images with a trained model: a map of class ids, a picture with a legend, and a JSON of regions for each.

    kiloseg predict runs/train photo.jpg --out predicted
    kiloseg predict my-study 'photos/**/*.jpg' --out predicted

An image whose NAME.json is there already is passed over, so a command that was interrupted goes on where it stopped.
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
    """Image files, folders that are searched for them, URLs (s3://...), or patterns in quotes."""
    out: Path
    """Folder for NAME.labels.png, NAME.overlay.png and NAME.json; of an image in a named folder NAME is its path there."""
    html: bool = False
    """Also NAME.html, a page that shows the name and confidence under the pointer, with classes to switch on and off."""
    overwrite: bool = False
    """Predict again what is there already."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; a GPU is taken if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU that has it, else fp32."""
    tile: int = 1024
    """Side in pixels of the pieces that larger images are cut into, a multiple of 32; memory grows with it."""
    overlap: int = 256
    """Pixels that neighbouring pieces share, a multiple of 32."""
    runs: Path = Path("runs")
    """Folder of MLflow's database where no server is named."""


def main(arguments: Arguments) -> int:
    """Writes the files; images that cannot be read are named and passed over. Returns 1 if no image could be."""
    from tqdm import tqdm

    from kiloseg.inference.inputs import find_images
    from kiloseg.inference.loading import load
    from kiloseg.inference.result import output_files

    found = find_images(arguments.images)
    model = load(arguments.source, device=arguments.device, precision=arguments.precision, runs=arguments.runs)
    done = skipped = bad = 0
    for name, image in tqdm(found, desc="predict", disable=None):
        if not arguments.overwrite and output_files(arguments.out, name)[-1].exists():
            skipped += 1
            continue
        try:
            result = model(image, tile=arguments.tile, overlap=arguments.overlap)
        except ValueError as error:
            bad += 1
            tqdm.write(f"passed over: {error}", file=sys.stderr)
            continue
        # Without NAME.json the others are what an interruption left.
        result.save(arguments.out, name, page=arguments.html, overwrite=True)
        done += 1
    parts = [f"{done:,} predicted"]
    parts += [f"{skipped:,} were there already (--overwrite predicts them again)"] if skipped else []
    parts += [f"{bad:,} could not be read"] if bad else []
    print(f"{arguments.out}: {', '.join(parts)}")
    return int(bad > 0 and done + skipped == 0)
