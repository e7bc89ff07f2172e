"""Builds a data set from your own images, with masks or with COCO or LVIS style annotations.

    python datasets/folder.py --images DIR --masks DIR --names classes.csv --out DIR
    python datasets/folder.py --images DIR --annotations instances.json --out DIR

Images are JPEG or PNG. Masks lie in the same folders under the same names, as PNG of one channel: 8 or 16 bits or a
palette, whose values or indices are the ids in --names. Annotations bring their categories along; where regions overlap,
the first in the file lies on top.

Subfolders train and val of --images (and of --masks) are the splits; without them a share of the images is set aside.
For annotations, --annotations may be a folder with train.json and val.json.
"""

from __future__ import annotations

from common.command_line import run
from folders.annotations import build_annotated
from folders.arguments import Arguments
from folders.masks import build_masked
from kiloseg.data.description import DatasetInfo
from kiloseg.storage.errors import DataError


def build_folder(arguments: Arguments) -> DatasetInfo:
    """Builds the splits that are there.

    Raises:
        DataError: files that are missing or hold something else, or as `build`.
    """
    if not arguments.images.is_dir():
        raise DataError(f"{arguments.images} is no folder: expected the images of --images")
    return build_annotated(arguments) if arguments.masks is None else build_masked(arguments)


if __name__ == "__main__":
    run(build_folder, Arguments)
