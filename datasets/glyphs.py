"""Builds the glyphs data set: thousands of characters on colored plates, drawn without any download.

    python datasets/glyphs.py --out data/glyphs --num-classes 64

Class 0 is the background (scikit-learn's two photographs); every other class is a character of the DejaVu fonts that matplotlib
ships. No two classes look alike in any font style. `train` uses seven styles of the typeface; `val` uses the eighth, DejaVu Serif,
so validation tests the character instead of a picture that was seen before.
"""

from __future__ import annotations

import functools
import math
import unicodedata

from common.command_line import run
from kiloseg.data.description import DatasetInfo
from kiloseg.data.writing.build import build, finished, plan_shards
from synthetic.glyph_characters import distinct_characters
from synthetic.glyph_scenes import NAME, Recipe, make_samples, object_counts

LICENSE = (
    "Glyphs: DejaVu fonts (Bitstream Vera license with public domain changes, free to use and redistribute; "
    "LICENSE_DEJAVU beside matplotlib's fonts). Backgrounds: crops of china.jpg and flower.jpg as shipped by "
    "scikit-learn, CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/), both credited there to danielbuechele: "
    "https://www.flickr.com/photos/danielbuechele/6061409035/ and https://www.flickr.com/photos/vultilion/6056698931/; "
    "cropped, resized, mirrored, brightened and drawn over."
)


def build_glyphs(recipe: Recipe) -> DatasetInfo:
    """Builds the data set of `recipe` unless its folder already holds it, and prints a line about it.

    Raises:
        DataError: `recipe.out` holds something else.
        ValueError: There are more classes than distinguishable characters.
    """
    found = finished(recipe, recipe.content())
    if found is not None:  # checked before the characters are chosen, which takes seconds
        return found
    characters = distinct_characters(recipe.num_classes - 1)
    if len(characters) < recipe.num_classes - 1:
        raise ValueError(
            f"num_classes = {recipe.num_classes}: the fonts have {len(characters)} distinguishable characters; "
            f"expected at most {len(characters) + 1}, with the background"
        )
    num_val_objects = object_counts(recipe, "val", recipe.val_samples).sum()
    if num_val_objects < len(characters):
        enough = math.ceil(recipe.val_samples * len(characters) / num_val_objects)
        print(
            f"note: val_samples = {recipe.val_samples} hold {num_val_objects} objects, so not all of the "
            f"{len(characters)} characters occur in val; set it to at least {enough}"
        )
    info = DatasetInfo(
        name=NAME,
        classes=["background", *(f"{character} {unicodedata.name(character)}" for character in characters)],
        background=0,
        license=LICENSE,
        command=recipe.command("datasets/glyphs.py"),
        recipe=recipe.content(),
    )
    tasks = [
        *plan_shards("train", recipe.train_samples, recipe.shard_size),
        *plan_shards("val", recipe.val_samples, recipe.shard_size),
    ]
    draw = functools.partial(make_samples, recipe=recipe, characters=characters)
    return build(recipe, info, tasks, draw)


if __name__ == "__main__":
    run(build_glyphs, Recipe)
