"""Builds a data set from your own images and labels, as your tool wrote them.

    python datasets/folder.py PATH --out DIR
    python datasets/folder.py --images DIR --masks DIR --names classes.csv --out DIR
    python datasets/folder.py --images DIR --annotations instances.json --out DIR

PATH is a folder or file that an annotation tool exported: COCO json (CVAT, Roboflow, FiftyOne, ...), panoptic COCO, labelme, CVAT's
xml, YOLO polygons, Label Studio, Supervisely, masks of Open Images, Parquet of the Hugging Face Hub, or images with masks. The
detected format is printed; --format chooses one if several fit.

Folders called train, val, test or the like (training, valid, val2017, ...) are the splits; without them, a share of the images is
set aside as val. A report at the end says what was left out and what looks wrong.
"""

from __future__ import annotations

from contextlib import nullcontext

from common.command_line import run
from common.tiles import larger_images
from folders.annotations import build_regions
from folders.arguments import Arguments
from folders.coco import source_of
from folders.detect import detect
from folders.masks import MaskSource, build_masked, build_source
from folders.parquet import ParquetSource, build_rows
from kiloseg.data.description import DatasetInfo
from kiloseg.storage.errors import DataError


def build_folder(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that exist.

    Raises:
        DataError: Files are missing or hold something else, or as for `build`.
    """
    with nullcontext() if arguments.tile is None else larger_images():
        return _build(arguments)


def _build(arguments: Arguments) -> DatasetInfo:
    if arguments.path is not None:
        found = detect(arguments)
        if isinstance(found, ParquetSource):
            return build_rows(arguments, found)
        return build_source(arguments, found) if isinstance(found, MaskSource) else build_regions(arguments, found)
    assert arguments.images is not None
    if not arguments.images.is_dir():
        raise DataError(f"{arguments.images} is not a folder: expected the images of --images")
    return build_regions(arguments, source_of(arguments)) if arguments.masks is None else build_masked(arguments)


if __name__ == "__main__":
    run(build_folder, Arguments)
