"""Makes an HTML page of a prediction, which names the class under the pointer and can hide classes. It works offline."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from kiloseg.inference.report import fill_page

if TYPE_CHECKING:
    from kiloseg.inference.result import Result

MAX_SIDE = 2048
"""Longest side of the shown image, in pixels. A larger image is scaled down, its labels by taking each cell's center pixel."""


def prediction_page(result: Result) -> str:
    """Returns the page as a single HTML file that contains the image and all labels."""
    height, width = result.labels.shape
    scale = max(height, width) / MAX_SIDE if max(height, width) > MAX_SIDE else 1.0
    size = max(round(height / scale), 1), max(round(width / scale), 1)
    rows, columns = (
        ((np.arange(cells) + 0.5) * scale).astype(np.int64).clip(max=side - 1)
        for cells, side in zip(size, (height, width), strict=True)
    )
    taken = np.ix_(rows, columns)
    number_C = np.zeros(len(result.classes), dtype=np.uint16)
    number_C[[region.label for region in result.regions]] = np.arange(len(result.regions))
    number_HW = number_C[result.labels[taken]]
    confidence_HW = np.nan_to_num(result.confidence[taken].astype(np.float32))
    map_HW3 = np.stack([number_HW >> 8, number_HW & 255, np.round(confidence_HW * 255)], axis=2).astype(np.uint8)
    photo = Image.fromarray(result.pixels)
    colors_C3 = result.classes.colors
    content = {
        "title": result.image,
        "scale": scale,
        "confident": not bool(np.isnan(result.confidence).any()),
        "image": _data_url(photo.resize(size[::-1]) if scale != 1 else photo, "JPEG", quality=90),
        "map": _data_url(Image.fromarray(map_HW3), "PNG"),
        "regions": [
            {
                "name": region.name,
                "color": colors_C3[region.label].tolist(),
                "share": region.pixels / result.labels.size,
            }
            for region in result.regions
        ],
    }
    return fill_page("page.html", content)


def _data_url(image: Image.Image, kind: str, **options: int) -> str:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
