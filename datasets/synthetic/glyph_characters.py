"""Chooses the characters of the glyphs data set: those of the DejaVu fonts that no reader would mistake for another.

matplotlib ships the fonts, so every installation has them.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

TRAIN_CUTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
)
VAL_CUTS = ("DejaVuSerif",)
CUTS = {"train": TRAIN_CUTS, "val": VAL_CUTS}
ALL_CUTS = (*TRAIN_CUTS, *VAL_CUTS)

SHAPE_SIDE = 24
"""Shapes are compared as drawings of 24 x 24 cells."""

SAME_SHAPE = 1.3
"""The number of cells of ink by which two shapes must differ at least (see `_alike`).

Measured with matplotlib 3.11 and Pillow 13: of 2,788 candidates 1.3 leaves 2,020 characters, 1.4 leaves 2,005, 2 leaves
1,946 and 3 leaves 1,873. It is the highest value that leaves 2,000 with some to spare for other versions of the fonts.
Below it lie copies in another size or weight (0/O 0.24, degree sign/O 0.43, logical or/V 1.1, ring operator/O 1.28) and
a few accents (macron/breve on E 0.6); far above it different letters (8/B 4.9, 5/S 18, 1/I 27, Z/2 44). The nearest
that stay are pairs of accents, arrows and braille.
"""


def distinct_characters(limit: int) -> list[str]:
    """Returns the first `limit` characters, or all there are, of which no two look alike in any two cuts.

    Every candidate is compared, over all pairs of cuts, with all characters chosen before it, so the first n of a
    longer list are the list for n.
    """
    candidates = _candidates()
    fonts = [font(cut, 96) for cut in ALL_CUTS]
    chosen: list[str] = []
    chosen_shapes: list[Shapes] = []
    block = 128
    for start in range(0, len(candidates), block):
        drawn = [(character, _ink(character, fonts)) for character in candidates[start : start + block]]
        visible = [(character, ink) for character, ink in drawn if ink is not None]
        if not visible:
            continue
        shapes = Shapes.of(np.stack([ink for _, ink in visible]))
        taken = np.zeros(len(visible), bool)
        for earlier in chosen_shapes:
            taken |= _alike(shapes, earlier).any(1)
        within = _alike(shapes, shapes)
        accepted: list[int] = []
        for number in np.flatnonzero(~taken).tolist():
            if not within[number, accepted].any():
                accepted.append(number)
        chosen += [visible[number][0] for number in accepted]
        chosen_shapes.append(Shapes(fine=shapes.fine[accepted], coarse=shapes.coarse[accepted]))
        if len(chosen) >= limit:
            break
    return chosen[:limit]


def _candidates() -> list[str]:
    """Returns letters, numbers, punctuation and symbols that all cuts have: familiar ones first, then by code point."""
    covered = set.intersection(*map(_characters_of, ALL_CUTS))
    familiar = [*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1), *range(ord("0"), ord("9") + 1)]
    others = sorted(covered - set(familiar))
    return [
        character
        for character in map(chr, familiar + others)
        if unicodedata.category(character)[0] in "LNPS" and not _is_copy(character)
    ]


def _characters_of(cut: str) -> set[int]:
    with TTFont(font_path(cut), lazy=True) as font:
        return set(font.getBestCmap())


def _is_copy(character: str) -> bool:
    """Whether it is a raised, lowered or small capital letter, which is the letter itself, a little bolder.

    Some would pass the comparison, but nobody can tell them from the letter on a plate.
    """
    copied = unicodedata.decomposition(character).startswith(("<super>", "<sub>"))
    return copied or "SMALL CAPITAL" in unicodedata.name(character)


def _ink(character: str, fonts: list[ImageFont.FreeTypeFont]) -> np.ndarray | None:
    """Returns what a reader sees of a character: float32 ink of 0 to 1 of shape (cuts, SHAPE_SIDE, SHAPE_SIDE).

    Position and size mean nothing on a plate, so the drawing is cropped to its ink and stretched to a square: all dashes and the
    period become one shape. The result is None if a cut draws nothing.
    """
    cuts = []
    for font in fonts:
        # Gray edges would make the crop, and so the shape of a plain bar, depend on fractions of a pixel.
        drawing = draw(character, font).convert("1", dither=Image.Dither.NONE).convert("L")
        box = drawing.getbbox()
        if box is None:
            return None
        cuts.append(np.asarray(drawing.resize((SHAPE_SIDE, SHAPE_SIDE), Image.Resampling.BOX, box=box)))
    return np.stack(cuts).astype(np.float32) / 255


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Holds characters in the form in which they are compared.

    `fine` is float32 of shape (n, cuts, 2, cells): the ink in each cell, and how far each cell is from ink, which is 1
    minus the most ink in the 3 x 3 cells around it. `coarse` has the sums of that ink and the minima of that distance
    over blocks of 3 x 3 cells.
    """

    fine: np.ndarray
    coarse: np.ndarray

    @staticmethod
    def of(ink: np.ndarray) -> Shapes:
        """Makes shapes from the ink of shape (n, cuts, SHAPE_SIDE, SHAPE_SIDE)."""
        n, cuts, side, _ = ink.shape
        padded = np.pad(ink, [(0, 0), (0, 0), (1, 1), (1, 1)])
        rows = np.maximum.reduce([padded[..., shift : shift + side, :] for shift in range(3)])
        far = 1 - np.maximum.reduce([rows[..., shift : shift + side] for shift in range(3)])
        fine = np.stack([ink, far], axis=2)
        blocks = fine.reshape(n, cuts, 2, side // 3, 3, side // 3, 3)
        coarse = np.stack([blocks[:, :, 0].sum((3, 5)), blocks[:, :, 1].min((3, 5))], axis=2)
        return Shapes(fine=fine.reshape(n, cuts, 2, -1), coarse=coarse.reshape(n, cuts, 2, -1))


def _alike(first: Shapes, second: Shapes) -> np.ndarray:
    """Whether characters look alike in any two cuts: bool of shape (n, m).

    Shapes differ by the ink of either that lies where the other has none within one cell. So slightly shifted edges or bolder
    strokes make no difference, but an accent or a bar does.
    """
    n, cuts = first.fine.shape[:2]
    m = len(second.fine)
    # This multiplies the ink of one with the distance of the other, both ways in one product. Over blocks it is a lower bound,
    # which saves the exact sum for all but a few in 1,000 pairs.
    bounds = first.coarse.reshape(n * cuts, -1) @ second.coarse[:, :, ::-1].reshape(m * cuts, -1).T
    a, b = np.nonzero(bounds <= SAME_SHAPE)
    fine_a = first.fine.reshape(n * cuts, 2, -1)[a]
    fine_b = second.fine.reshape(m * cuts, 2, -1)[b, ::-1]
    same = np.einsum("pkc,pkc->p", fine_a, fine_b) <= SAME_SHAPE
    alike = np.zeros((n, m), bool)
    alike[a[same] // cuts, b[same] // cuts] = True
    return alike


def font_path(cut: str) -> Path:
    """Returns the file of a cut."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{cut}.ttf"


@functools.lru_cache
def font(cut: str, em: int) -> ImageFont.FreeTypeFont:
    """Returns a cut at `em` pixels to the em."""
    # The basic layout is in every Pillow; Raqm is not, and would make pixels depend on the installation.
    return ImageFont.truetype(font_path(cut), em, layout_engine=ImageFont.Layout.BASIC)


def draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draws white on black, with a margin of a pixel or more; the image is empty for a character without ink."""
    left, top, right, bottom = font.getbbox(character)
    drawing = Image.new("L", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2))
    ImageDraw.Draw(drawing).text((1 - left, 1 - top), character, font=font, fill=255)
    return drawing
