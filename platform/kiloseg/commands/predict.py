"""Labels images with a trained model; for each it writes a map of class ids, a picture with a legend, and a JSON of regions.

    kiloseg predict runs/train photo.jpg --out predicted
    kiloseg predict my-study 'photos/**/*.jpg' --out predicted
    kiloseg predict runs/grouped photos --out predicted --level sure --unknown

An image whose NAME.json already exists is skipped, so an interrupted command continues where it stopped.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from kiloseg.storage.commands import shell

if TYPE_CHECKING:
    from kiloseg.inference.answering import Answer


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
    level: int | Literal["sure"] | None = None
    """Answer groups of the classes (`kiloseg classes SOURCE group`): those of a level, 1 for the largest groups, or, with "sure",
    the smallest group whose probability is at least --sure where the class has less. None: classes."""
    sure: float = 0.5
    """For --level sure: the probability that an answer needs, above 0 and up to 1."""
    unknown: bool = False
    """Answer "unknown" (id 65535) where a pixel shows none of the classes (`kiloseg classes SOURCE unknown`)."""
    unknown_below: float | None = None
    """The familiarity below which a pixel is unknown, instead of the calibrated one."""
    scales: tuple[float, ...] = (1.0,)
    """Factors of the image's sides whose outputs are averaged, such as 1 1.2 1.4. More take more time and often predict better."""
    flip: bool = False
    """Also average the outputs of the mirror image."""
    overwrite: bool = False
    """Predict images again whose output already exists."""
    device: str | None = None
    """Where the network runs: cpu, cuda, cuda:1, ... None: a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the network. auto: bf16 on a GPU that supports it, else fp32."""
    batch_size: int | None = None
    """The most images that go through the network together: neighbors of the same size that fit into one tile. None: 8 on a
    GPU, 1 on a CPU."""
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

    from kiloseg.inference.answering import answering
    from kiloseg.inference.batches import predict_many
    from kiloseg.inference.inputs import find_images
    from kiloseg.inference.loading import load
    from kiloseg.inference.result import output_files

    Image.MAX_IMAGE_PIXELS = arguments.max_pixels
    found = find_images(arguments.images)
    model = load(
        arguments.source,
        device=arguments.device,
        precision=arguments.precision,
        scales=arguments.scales,
        flip=arguments.flip,
        runs=arguments.runs,
    )
    answer = _answer(arguments, model.classes.known_from)
    if answer is not None:  # refused before the first image, not for each of them
        answering(model.segmenter.head, model.classes, answer)
    remaining = found
    if not arguments.overwrite:
        remaining = [pair for pair in found if not output_files(arguments.out, pair[0])["json"].exists()]
    skipped, done, bad = len(found) - len(remaining), 0, 0
    batch_size = arguments.batch_size
    if batch_size is None:
        batch_size = 1 if model.device.type == "cpu" else 8
    predicted = predict_many(
        model,
        (image for _, image in remaining),
        batch_size=batch_size,
        tile=arguments.tile,
        overlap=arguments.overlap,
        answer=answer,
    )
    progress = tqdm(zip(remaining, predicted, strict=True), desc="predict", total=len(remaining), disable=None)
    for (name, _), (_, result) in progress:
        if isinstance(result, ValueError):
            bad += 1
            tqdm.write(f"passed over: {result}", file=sys.stderr)
            continue
        # Without NAME.json, the other files are the remains of an interrupted command.
        result.save(arguments.out, name, page=arguments.html, confidence=arguments.confidence, overwrite=True)
        done += 1
    parts = [f"{done:,} predicted"]
    parts += [f"{skipped:,} already existed (--overwrite predicts them again)"] if skipped else []
    parts += [f"{bad:,} could not be read"] if bad else []
    print(f"{arguments.out}: {', '.join(parts)}")
    return int(bad > 0 and done + skipped == 0)


def _answer(arguments: Arguments, known_from: float | None) -> Answer | None:
    """Returns what may be answered besides classes; None if nothing else was asked for."""
    from kiloseg.inference.answering import Answer

    below = arguments.unknown_below
    if arguments.unknown and below is None:
        if known_from is None:
            runs = () if arguments.runs == Path("runs") else ("--runs", arguments.runs)
            calibrate = shell("kiloseg", "classes", arguments.source, "unknown", "DATA", "--out", "FOLDER", *runs)
            raise ValueError(
                f"--unknown: {arguments.source} is not calibrated; predict with the model that {calibrate} writes into FOLDER, "
                "DATA being a data set, or give --unknown-below"
            )
        below = known_from
    if arguments.level is None and below is None:
        return None
    if arguments.level == "sure":
        return Answer(sure=arguments.sure, unknown_below=below)
    return Answer(level=arguments.level, unknown_below=below)
