"""Checks the polygons and RLE of an annotation number by number before pycocotools sees them.

pycocotools passes its input to C code: a null or huge coordinate takes gigabytes or crashes the process, and a compressed RLE that
covers less than its image becomes a mask of uninitialized memory. So types, sizes and counts are checked here. If the text has the
usual form, msgspec's typed decoder does this, which costs less than pycocotools' own conversion.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from typing import Any

import msgspec
import numpy as np
import pycocotools.mask

REACH = 4
"""A coordinate may lie this many image sides outside of the image. Tools write corners a little outside; a corner further away is
an error in the file, and pycocotools would walk to it pixel by pixel."""

LONGEST_OUTLINE = 40_000_000
"""The most steps of a fifth of a pixel around a polygon that are drawn: about 700 MB while it is drawn."""

RUNS = "runs"
"""An RLE may also have its counts as an array under this name, zeros and ones in turn."""

LONGEST_BOX = 300
"""A box as json text is shorter than this; longer text is not looked at."""
_NUMBER = re.compile(rb"-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")

Segmentation = list[list[float]] | dict[str, Any] | None
_USUAL: msgspec.json.Decoder[Segmentation] = msgspec.json.Decoder(Segmentation)


def has_shape(text: bytes) -> bool:
    """Whether a segmentation, as json text, is more than an empty list, which annotations of boxes have."""
    return len(text) > 16 or bytes(text).translate(None, b" \t\r\n[]{}") not in (b"", b"null")


def is_box(text: bytes) -> bool:
    """Whether a segmentation, as json text, is one polygon of the four corners of an upright box."""
    if len(text) > LONGEST_BOX or text.count(b",") not in (7, 9) or not text.startswith(b"[["):
        return False
    points = [float(number) for number in _NUMBER.findall(text)]
    return len(points) in (8, 10) and len(set(points[::2])) == len(set(points[1::2])) == 2 and _turns(points)


def _turns(points: list[float]) -> bool:
    """Whether neighbors among four corners differ in one coordinate; a fifth corner repeats the first."""
    corners = list(zip(points[::2], points[1::2], strict=True))
    if len(corners) == 5 and corners.pop() != corners[0]:
        return False
    return all((a[0] != b[0]) != (a[1] != b[1]) for a, b in zip(corners, corners[1:] + corners[:1], strict=True))


def is_share(text: bytes) -> bool:
    """Whether a segmentation, as json text, is of polygons within the first pixel, as shares of the image's size are."""
    try:
        polygons = _USUAL.decode(text)
    except (msgspec.ValidationError, msgspec.DecodeError):
        return False
    if not isinstance(polygons, list):
        return False
    return all(0 <= value <= 1 for polygon in polygons for value in polygon)


def to_rles(text: bytes, height: int, width: int) -> list[dict[str, Any]]:
    """Returns pycocotools' compressed RLEs, which together cover the region; what lies to the right of it may be left out.

    Args:
        text: json, either a list of polygons, each [x0, y0, x1, y1, ...] or [[x0, y0], [x1, y1], ...] in pixels, or an RLE
            with "size" and "counts", whose counts are a list or compressed text.
        height: the height of the image.
        width: the width of the image.

    Raises:
        ValueError: The text is anything else, a coordinate is not a finite number or lies far outside, or an RLE has another
            size or does not cover the image.
    """
    try:
        segmentation = _USUAL.decode(text)
    except msgspec.ValidationError:
        segmentation = _polygons(msgspec.json.decode(text))
    if isinstance(segmentation, list):
        return _polygon_rles(segmentation, height, width)
    if segmentation is None:
        raise ValueError("neither polygons nor RLE")
    return [_checked_rle(segmentation, height, width)]


def _polygons(content: Any) -> list[list[float]]:
    """Returns polygons of a form that few tools write: flat lists, or lists of pairs; says what is wrong with any other."""
    if not isinstance(content, list):
        raise ValueError("neither polygons nor RLE")
    polygons = []
    for polygon in content:
        if not isinstance(polygon, list):
            raise ValueError("a polygon is not a list of alternating x and y")
        pairs = bool(polygon) and all(isinstance(point, list) and len(point) == 2 for point in polygon)
        numbers = list(itertools.chain.from_iterable(polygon)) if pairs else polygon
        for value in numbers:
            if type(value) not in (int, float):
                raise ValueError(f"a coordinate is {value!r}, expected a number")
        polygons.append(numbers)
    return polygons


def _polygon_rles(polygons: list[list[float]], height: int, width: int) -> list[dict[str, Any]]:
    if any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon is not a list of alternating x and y")
    # Two points enclose nothing, and four numbers would be mistaken for a box.
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    rightmost = 0.0
    for polygon in polygons:
        for values, side, name in ((polygon[::2], width, "x"), (polygon[1::2], height, "y")):
            low, high = min(values), max(values)
            if not (-REACH * side <= low and high <= (1 + REACH) * side):
                value = next(value for value in values if not -REACH * side <= value <= (1 + REACH) * side)
                raise ValueError(
                    f"a coordinate {name} is {value}, expected {-REACH * side} to {(1 + REACH) * side} in an image of {side} "
                    "pixels"
                )
        rightmost = max(rightmost, max(polygon[::2]))
        if (
            len(polygon) * 5 * (1 + 2 * REACH) * max(height, width) > LONGEST_OUTLINE
            and _steps(polygon) > LONGEST_OUTLINE
        ):
            raise ValueError(
                f"a polygon of {len(polygon) // 2:,} corners is {_steps(polygon) / 5:,.0f} pixels around, expected at most "
                f"{LONGEST_OUTLINE / 5:,.0f}"
            )
    # Columns are drawn from left to right, so those beyond the last corner cost time and change nothing.
    needed = min(width, int(rightmost) + 2)
    return pycocotools.mask.frPyObjects(polygons, height, max(needed, 1)) if polygons else []


def _steps(polygon: list[float]) -> float:
    """Returns the memory that pycocotools takes for a polygon, in its own steps."""
    corners = np.array(polygon).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() * 5)


def _checked_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    for field in ("size", "counts"):
        if field not in rle:
            raise ValueError(f"an RLE that lacks {field}")
    if rle["size"] != [height, width]:
        raise ValueError(f"an RLE of size {str(rle['size'])[:60]}, its image has {[height, width]} (height, width)")
    size = [height, width]
    counts = rle["counts"]
    if isinstance(counts, str):
        runs = compressed_counts(counts.encode())
        covered = int(runs.sum())
        if covered != height * width:
            raise ValueError(f"Invalid RLE: its counts add up to {covered}, its image has {height * width} pixels")
        return {"size": size, "counts": counts, RUNS: runs}
    if not isinstance(counts, list) or not all(
        type(count) is int or (type(count) is float and count.is_integer()) for count in counts
    ):
        raise ValueError("RLE counts that are not whole numbers")
    counts = [int(count) for count in counts]
    if sum(counts) != height * width or min(counts) < 0:
        raise ValueError(f"RLE counts add up to {sum(counts)}, its image has {height * width} pixels")
    return pycocotools.mask.frPyObjects({"size": size, "counts": counts}, height, width)


def area(rle: dict[str, Any]) -> int:
    """Returns the number of pixels that a compressed RLE covers."""
    return int(rle[RUNS][1::2].sum()) if RUNS in rle else int(pycocotools.mask.area(rle))


def decode(rle: dict[str, Any]) -> np.ndarray:
    """Returns the mask of a compressed RLE: uint8 zeros and ones in Fortran order.

    One whose counts are known already is written from them, which takes a quarter of the time of pycocotools.
    """
    if RUNS not in rle:
        return pycocotools.mask.decode(rle)
    height, width = rle["size"]
    values = np.arange(len(rle[RUNS]), dtype=np.uint8) & 1
    return np.repeat(values, rle[RUNS]).reshape(width, height).T


def covered_places(rle: dict[str, Any]) -> np.ndarray:
    """Returns where the ones of a compressed RLE lie, counted column by column: int64, ascending."""
    counts = rle[RUNS] if RUNS in rle else compressed_counts(rle["counts"])
    ends = np.cumsum(counts)
    starts, lengths = ends[:-1:2], counts[1::2]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


def compressed_counts(text: bytes) -> np.ndarray:
    """Returns the counts of a compressed RLE, zeros and ones in turn.

    A count is written in groups of five bits, the lowest first. Each group is a character from "0" on, whose sixth bit says that
    another follows; the fifth bit of the last is the sign. From the fourth count on, the difference to the count two before is
    written.

    Raises:
        ValueError: The text is not such an RLE.
    """
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    ends = np.flatnonzero(digits & 32 == 0)
    if digits.min() < 0 or digits.max() > 63 or not len(ends) or ends[-1] != len(digits) - 1:
        raise ValueError("Invalid RLE: its text has other characters, or ends in the middle of a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise ValueError("Invalid RLE: a count of more than 40 bits")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    values = np.add.reduceat((digits & 31) << (5 * place), starts)
    values -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    counts = values.copy()
    counts[1::2] = np.cumsum(values[1::2])
    counts[2::2] = np.cumsum(values[2::2])
    if counts.min() < 0:
        raise ValueError("Invalid RLE: a negative count")
    return counts


def box(left: float, top: float, right: float, bottom: float) -> list[float]:
    """Returns the polygon of a box, whose corners may be given in either order."""
    left, right = sorted((left, right))
    top, bottom = sorted((top, bottom))
    return [left, top, right, top, right, bottom, left, bottom]


def ellipse(x: float, y: float, radius_x: float, radius_y: float, turned: float = 0.0) -> list[float]:
    """Returns a polygon of 64 corners on an ellipse around (x, y), turned clockwise by degrees."""
    cos, sin = math.cos(math.radians(turned)), math.sin(math.radians(turned))
    points: list[float] = []
    for step in range(64):
        angle = 2 * math.pi * step / 64
        across, down = radius_x * math.cos(angle), radius_y * math.sin(angle)
        points += [x + across * cos - down * sin, y + across * sin + down * cos]
    return points


def rle_text(mask_HW: np.ndarray) -> bytes:
    """Returns a compressed RLE as json text of a uint8 mask of zeros and ones in Fortran order."""
    rle = pycocotools.mask.encode(mask_HW)
    return json.dumps({"size": list(rle["size"]), "counts": rle["counts"].decode()}).encode()


def placed(part_HW: np.ndarray, left: int, top: int, height: int, width: int) -> bytes:
    """Returns the RLE, as json text, of a mask of zeros and ones at a place in an image; raises ValueError if it does not fit."""
    if left < 0 or top < 0 or top + part_HW.shape[0] > height or left + part_HW.shape[1] > width:
        raise ValueError(f"a mask of {part_HW.shape} at column {left}, row {top} does not fit into {height, width}")
    whole_HW = np.zeros((height, width), np.uint8, order="F")
    whole_HW[top : top + part_HW.shape[0], left : left + part_HW.shape[1]] = part_HW
    return rle_text(whole_HW)


def without_holes(outer: list[Any], holes: list[Any], height: int, width: int) -> bytes:
    """Returns a polygon with holes as json text: a polygon if there are no holes, otherwise an RLE; raises ValueError as
    `to_rles`."""
    if not holes:
        return json.dumps([outer]).encode()
    mask_HW = _drawn([outer], height, width)
    for hole in holes:
        mask_HW &= ~_drawn([hole], height, width) & 1
    return rle_text(mask_HW)


def even_odd(rings: list[Any], height: int, width: int) -> bytes:
    """Returns what an odd number of rings covers, as json text: a polygon if there is one ring, otherwise an RLE; raises ValueError
    as `to_rles`."""
    if len(rings) == 1:
        return json.dumps(rings).encode()
    mask_HW = np.zeros((height, width), np.uint8, order="F")
    for ring in rings:
        mask_HW ^= _drawn([ring], height, width)
    return rle_text(mask_HW)


def _drawn(polygons: list[Any], height: int, width: int) -> np.ndarray:
    mask_HW = np.zeros((height, width), np.uint8, order="F")
    for rle in to_rles(json.dumps(polygons).encode(), height, width):
        part = decode(rle)
        mask_HW[:, : part.shape[1]] |= part
    return mask_HW
