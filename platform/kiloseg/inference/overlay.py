"""Draws a prediction as a picture that stays readable for any number of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TINT = 0.5
"""Weight of the class color in a region, from 0 to 1; the rest is the image."""
MAX_ENTRIES = 40
"""Most classes in the legend; its last line counts the others, which have fewer pixels."""


class _Region(Protocol):
    @property
    def label(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def pixels(self) -> int: ...


def draw_overlay(
    pixels_HW3: np.ndarray, labels_HW: np.ndarray, regions: Sequence[_Region], colors_C3: np.ndarray
) -> Image.Image:
    """Draws the image with tinted and outlined regions, and below it a legend of the classes that occur.

    Args:
        pixels_HW3: the image, uint8.
        labels_HW: the label of every pixel, 0 to C - 1.
        regions: the regions for the legend, the largest first.
        colors_C3: color of every class, uint8.

    Returns:
        An RGB image as wide as the given image, or wider if the legend needs it.
    """
    height, width = labels_HW.shape
    tinted = np.empty_like(pixels_HW3)
    for row in range(0, height, 256):  # limits how many pixels are floats at once
        part = slice(row, row + 256)
        mixed = (1 - TINT) * pixels_HW3[part] + TINT * colors_C3[labels_HW[part]]
        tinted[part] = mixed.astype(np.uint8)
    edge = _edges(labels_HW)
    tinted[edge] = colors_C3[labels_HW[edge]] // 2
    legend = _legend(regions, colors_C3, width, labels_HW.size)
    picture = Image.new("RGB", (max(width, legend.width), height + legend.height), "white")
    picture.paste(Image.fromarray(tinted), (0, 0))
    picture.paste(legend, (0, height))
    return picture


def _edges(labels_HW: np.ndarray) -> np.ndarray:
    edge = np.zeros(labels_HW.shape, dtype=bool)
    edge[:, 1:] |= labels_HW[:, 1:] != labels_HW[:, :-1]
    edge[1:] |= labels_HW[1:] != labels_HW[:-1]
    return edge


def _legend(regions: Sequence[_Region], colors_C3: np.ndarray, width: int, area: int) -> Image.Image:
    # The font size grows with the image, so that the legend is readable when the whole picture is shown on a screen.
    size = int(np.clip(width / 55, 11, 40))
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
    shown = regions[:MAX_ENTRIES]
    texts = [f"{region.name}  {region.pixels / area:.1%}" for region in shown]
    if len(regions) > len(shown):
        texts.append(f"and {len(regions) - len(shown)} more")
    line, gap = round(1.5 * size), size
    longest = max(int(font.getlength(text)) for text in texts) + line + gap
    columns = max((width - gap) // longest, 1)
    rows = -(-len(texts) // columns)
    legend = Image.new("RGB", (max(width, longest + gap), rows * line + gap), "white")
    draw = ImageDraw.Draw(legend)
    for number, text in enumerate(texts):
        column, row = divmod(number, rows)
        left, top = gap + column * longest, gap // 2 + row * line
        if number < len(shown):
            color = tuple(int(value) for value in colors_C3[shown[number].label])
            draw.rectangle((left, top + 2, left + size, top + 2 + size), fill=color, outline="black")
        draw.text((left + line, top), text, fill="black", font=font)
    return legend
