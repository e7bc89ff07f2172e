"""Builds the glyphs data set: thousands of characters on coloured plates, drawn without any download.

    python datasets/glyphs.py --out data/glyphs --num-classes 64

Class 0 is the background (scikit-learn's two photographs), every other class is a character of the DejaVu fonts that
matplotlib ships. No two classes look alike in any cut. `train` uses seven cuts of the typeface; `val` uses the eighth,
DejaVu Serif, so that validation asks for the character and not for a picture that was seen before.
"""

from __future__ import annotations

import functools
import math
import re
import time
import unicodedata
from pathlib import Path

import tyro

from glyph_characters import distinct_characters
from glyph_scenes import NAME, Recipe, make_samples, object_counts
from kiloseg.data.build import build, plan_shards, up_to_date
from kiloseg.data.shards import DESCRIPTION, DataError, DatasetInfo, read_info

LICENCE = (
    "Glyphs: DejaVu fonts (Bitstream Vera licence with public domain changes, free to use and redistribute; "
    "LICENSE_DEJAVU beside matplotlib's fonts). Backgrounds: crops of china.jpg and flower.jpg as shipped by "
    "scikit-learn, CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/), both credited there to danielbuechele: "
    "https://www.flickr.com/photos/danielbuechele/6061409035/ and https://www.flickr.com/photos/vultilion/6056698931/; "
    "cropped, resized, mirrored, brightened and drawn over."
)


def build_glyphs(recipe: Recipe) -> DatasetInfo:
    """Builds the data set of `recipe` unless its folder holds it already, and prints a line about it.

    Raises:
        DataError: `recipe.out` holds something else.
        ValueError: more classes than there are distinguishable characters.
    """
    if up_to_date(recipe.out, recipe.content()):
        info = read_info(recipe.out)
        print(f"{recipe.out} is up to date: {_summary(info)}")
        return info
    _check_folder(recipe.out)
    begin = time.perf_counter()
    characters = distinct_characters(recipe.num_classes - 1)
    if len(characters) < recipe.num_classes - 1:
        raise ValueError(
            f"num_classes = {recipe.num_classes}: the fonts hold {len(characters)} characters that can be told apart; "
            f"expected at most {len(characters) + 1}, with the background"
        )
    num_val_objects = object_counts(recipe, "val", recipe.val_samples).sum()
    if num_val_objects < len(characters):
        enough = math.ceil(recipe.val_samples * len(characters) / num_val_objects)
        print(
            f"note: val_samples = {recipe.val_samples} hold {num_val_objects} objects, so that not all of the "
            f"{len(characters)} characters occur in val; it takes at least {enough}"
        )
    info = DatasetInfo(
        name=NAME,
        classes=["background", *(f"{character} {unicodedata.name(character)}" for character in characters)],
        background=0,
        licence=LICENCE,
        command=recipe.command(),
        recipe=recipe.content(),
    )
    tasks = [
        *plan_shards("train", recipe.train_samples, recipe.shard_size),
        *plan_shards("val", recipe.val_samples, recipe.shard_size),
    ]
    draw = functools.partial(make_samples, recipe=recipe, characters=characters)
    begin_drawing = time.perf_counter()
    info = build(recipe.out, info, tasks, draw, processes=recipe.processes)
    end = time.perf_counter()
    num_samples = recipe.train_samples + recipe.val_samples
    print(f"{recipe.out}: {_summary(info)}, {end - begin:.1f} s, {num_samples / (end - begin_drawing):.0f} scenes/s")
    return info


def _summary(info: DatasetInfo) -> str:
    shards = [shard for split in info.splits for shard in info.shards(split)]
    samples = ", ".join(f"{info.num_samples(split)} {split}" for split in info.splits)
    megabytes = sum(shard.bytes for shard in shards) / 1e6
    return (
        f"{info.num_classes} classes, samples {samples}, {len(shards)} shards, {megabytes:.1f} MB, digest {info.digest}"
    )


def _check_folder(out: Path) -> None:
    """Raises DataError where building in `out` would mix with, or replace, something that is not this data set."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out} is a file: expected a folder to write the data set into")
    mend = "choose another --out, or empty this one yourself"
    if (out / DESCRIPTION).exists():
        try:
            name = read_info(out).name
        except DataError as error:
            raise DataError(f"{out} holds something that is no readable data set ({error}); {mend}") from error
        if name != NAME:
            raise DataError(
                f"{out} holds the data set {name!r}: expected a new folder or an earlier build of {NAME!r}; {mend}"
            )
        return
    # A build that was interrupted leaves shards without dataset.json, and may be begun again.
    own = re.compile(r"((train|val)-\d+\.tar|index\.parquet|dataset\.json)(\.partial)?")
    foreign = sorted(path.name for path in out.iterdir() if not own.fullmatch(path.name))
    if foreign:
        raise DataError(
            f"{out} has no {DESCRIPTION} but holds {foreign[0]!r}: expected a new, empty or glyphs folder; {mend}"
        )


if __name__ == "__main__":
    build_glyphs(tyro.cli(Recipe))
