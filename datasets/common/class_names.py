"""Reads a user's table of classes, in any of the forms that tools write: ids, names, and colors if masks have colors.

id,name / Pixel Value,Class / name;r;g;b     csv with commas, semicolons or tabs, headers in any case
sky                                           a name a line
sky:70,130,180::                              CVAT's labelmap.txt
["sky"], {"0": "sky"}, {"sky": 0}, {"sky": [70, 130, 180]}, {"categories": [...]}, {"labels": [...]}      json
names: {0: sky} / names: [sky]                yaml
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.label_table import MAX_RAW_ID
from kiloseg.storage.errors import DataError

ID_COLUMNS = ("id", "idx", "index", "pixelvalue", "value", "labelid", "classid", "categoryid", "trainid")
NAME_COLUMNS = ("name", "class", "label", "classname", "labelname", "category", "categoryname", "readable")
COLORS = (("r", "g", "b"), ("red", "green", "blue"))
LISTS = ("categories", "labels", "classes", "names", "items")
"""These fields of a json object may hold a list of classes."""

Color = tuple[int, int, int]

VOC_VOID = (224, 224, 192)
"""The color of PASCAL VOC's id 255, the boundaries of objects."""


@dataclass(frozen=True)
class NameTable:
    """Holds what a table of classes says."""

    names: dict[int, str]
    """Maps raw ids to names; an id with an empty name is ignored. If the table has no ids, they count from 0."""
    colors: dict[Color, int]
    """Maps colors to raw ids, if the table has colors."""
    replaced: dict[int, int | None] = field(default_factory=dict)
    """Maps ids in masks to other ids of the table, or to None if they are ignored: label_mapping in Ultralytics' yaml. Other ids
    are those of the table."""


@dataclass(frozen=True)
class _Row:
    name: str
    id: int | None = None
    color: Color | None = None


def read_names(path: Path) -> dict[int, str]:
    """Maps raw ids to class names from a user's own table; ids with an empty name are ignored; raises as `read_table`."""
    return read_name_table(path).names


def read_name_table(path: Path, *, with_colors: bool = True) -> NameTable:
    """Reads a table of classes and, if requested, the colors of its classes.

    Raises:
        DataError: There is no such file, its form is none of the above, an id, name or color occurs twice, or an id exceeds 16
            bits. The message names the line if there is one.
    """
    try:
        text = read_text(path)
        rows = _rows(path, text)
        replaced = _replaced(path, text)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: expected a csv, txt, json or yaml file of class names") from None
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path} is not a table of class names ({type(error).__name__}: {error}): expected csv with the columns id and name "
            'or name alone, a name a line, or json such as {"0": "road", "7": "tree"} or ["road", "tree"]'
        ) from error
    numbered = [(number if row.id is None else row.id, row) for number, row in enumerate(rows)]
    names = {raw_id: row.name for raw_id, row in numbered}
    if len(names) != len(rows):
        raise DataError(f"{path} has an id twice: expected {len(rows)} different ids")
    given = [name for name in names.values() if name]
    if len(set(given)) != len(given):
        twice = next(name for number, name in enumerate(given) if name in given[:number])
        raise DataError(f"{path} has the name {twice!r} twice: expected each class once; rename one of them")
    if len(given) < 2 or min(names) < 0 or max(names) >= MAX_RAW_ID:
        raise DataError(f"{path} has {len(given)} classes: expected at least 2, with ids from 0 to {MAX_RAW_ID - 1}")
    unknown = next((new for new in replaced.values() if new is not None and new not in names), None)
    if unknown is not None:
        raise DataError(
            f"{path}: label_mapping leads to {unknown}, which names lacks: expected one of them, or ignore_label"
        )
    if not with_colors:
        return NameTable(names, {}, replaced)
    colors = {row.color: raw_id for raw_id, row in numbered if row.color is not None}
    if len(colors) != sum(row.color is not None for row in rows):
        raise DataError(f"{path} has a color twice: expected a color of its own for each class")
    if colors and len(colors) != len(rows):
        raise DataError(f"{path} has colors for {len(colors)} of {len(rows)} classes: expected one for each")
    return NameTable(names, colors, replaced)


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8 with or without a byte order mark, UTF-16 with one, or otherwise Latin-1, with a warning."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        warnings.warn(f"{path} is not in UTF-8; it is read as Latin-1, so look at the names", stacklevel=2)
        return data.decode("latin-1")


def _rows(path: Path, text: str) -> list[_Row]:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _from_content(json.loads(text))
    if suffix in (".yaml", ".yml"):
        import yaml

        content = yaml.safe_load(text)
        return _from_content(content["names"] if isinstance(content, dict) and "names" in content else content)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if lines and all(re.search(r":(\d+,\d+,\d+)?:[^:]*:", line) or line.startswith("#") for _, line in lines):
        return _labelmap([(number, line) for number, line in lines if not line.startswith("#")])
    return _from_lines(lines, bare=suffix != ".csv")


def _replaced(path: Path, text: str) -> dict[int, int | None]:
    """Returns label_mapping of a yaml file: raw id to id, or to ignore_label, 255 or nothing, which mean ignore."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return {}
    import yaml

    content = yaml.safe_load(text)
    mapping = content.get("label_mapping") if isinstance(content, dict) else None
    return {
        int(raw): None if new is None or str(new).strip() in ("ignore_label", "255") else int(new)
        for raw, new in (mapping or {}).items()
        if 0 <= int(raw) <= MAX_RAW_ID
    }


def voc_color(class_id: int) -> Color:
    """Returns the color that PASCAL VOC's color map gives an id from 0 to 255: its bits in turn, the lowest to the highest bits of
    red, green and blue."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (class_id >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


def _labelmap(lines: list[tuple[int, str]]) -> list[_Row]:
    """Parses CVAT's labelmap.txt: name:r,g,b:parts:actions. Names may contain colons.

    If no line has a color, the colors are those of VOC's color map in the order of the lines, as datumaro writes it.
    """
    parsed = [(number, *_two(line.rsplit(":", 3))) for number, line in lines]
    if not any(color for _, _, color in parsed) and len(parsed) <= 256:
        return [_Row(name.strip(), color=voc_color(place)) for place, (_, name, _) in enumerate(parsed)]
    missing = next((number for number, _, color in parsed if not color), None)
    if missing is not None:
        raise ValueError(f"line {missing} has no color")
    return [_Row(name.strip(), color=_color(color.split(","))) for _, name, color in parsed]


def _two(parts: list[str]) -> tuple[str, str]:
    return parts[0], parts[1]


def _from_lines(lines: list[tuple[int, str]], *, bare: bool) -> list[_Row]:
    if not lines:
        return []
    header_line = lines[0][1]
    delimiter = max(",;\t", key=header_line.count) if re.search("[,;\t]", header_line) else ","
    header = [re.sub(r"[^a-z]", "", cell.lower()) for cell in next(csv.reader([header_line], delimiter=delimiter))]
    name = next((header.index(column) for column in NAME_COLUMNS if column in header), None)
    if name is None:
        if not bare:
            raise ValueError(f"line 1 is {header_line!r}, which has no column called name")
        lines = [(number, line) for number, line in lines if not line.lstrip().startswith("#")]
        rows = _ids_last([line for _, line in lines]) or [_bare(line, number) for number, line in lines]
        gap = next((after for (before, _), (after, _) in itertools.pairwise(lines) if after > before + 1), None)
        if gap is not None and all(row.id is None for row in rows):
            raise ValueError(
                f"line {gap - 1} is empty or a comment; an id is the number of its line, so write all names without a gap"
            )
        return rows
    ids = next(
        (header.index(column) for column in ID_COLUMNS if column in header and header.index(column) != name), None
    )
    colors = next(([header.index(c) for c in columns] for columns in COLORS if set(columns) <= set(header)), None)
    rows = []
    for number, line in lines[1:]:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True))
        if len(cells) > len(header) and name == len(header) - 1:  # an unquoted name that contains commas
            cells[name:] = [delimiter.join(cells[name:])]
        if len(cells) != len(header):
            raise ValueError(
                f"line {number} has {len(cells)} columns, the first line {len(header)}; put names with {delimiter!r} into quotes"
            )
        color = _color([cells[column] for column in colors]) if colors else None
        rows.append(_Row(cells[name].strip(), None if ids is None else int(cells[ids]), color))
    return rows


def _ids_last(lines: list[str]) -> list[_Row] | None:
    """Returns rows of a file without a header whose lines are a name and an id; None if they are not.

    Raises:
        ValueError: Only a blank is between them and the numbers are not those of the lines, so they may be part of the names.
    """
    found = [re.fullmatch(r"\s*([^\d\s].*?)\s*([,;\t ])\s*(\d+)\s*", line) for line in lines]
    rows = [(match[1].strip(), match[2], int(match[3])) for match in found if match is not None]
    if len(rows) < max(len(lines), 2) or len({name for name, _, _ in rows}) < len(rows):
        return None
    if all(mark != " " for _, mark, _ in rows):
        return [_Row(name, number) for name, _, number in rows]
    numbers = [number for _, _, number in rows]
    if numbers not in (list(range(len(rows))), list(range(1, len(rows) + 1))):
        raise ValueError(f"line 1 is {lines[0]!r}: a number that is the id comes first, or with a comma between")
    return None


def _bare(line: str, number: int) -> _Row:
    """Parses a line of a file without a header: a name, an id and a name, or three numbers of a color and a name (CamVid)."""
    if (color := re.fullmatch(r"\s*(\d{1,3})\s+(\d{1,3})\s+(\d{1,3})\s+(\D.*)", line)) is not None:
        return _Row(color[4].strip(), color=_color([color[1], color[2], color[3]]))
    found = re.fullmatch(r"\s*(\d+)\s*[,;:\t ]\s*(\S.*)", line)
    if found is None:
        return _Row(line.strip())
    return _Row(found[2].strip(), int(found[1]))


def _color(parts: list[Any]) -> Color:
    if len(parts) != 3 or not all(0 <= int(part) <= 255 for part in parts):
        raise ValueError(f"color {parts}: expected three numbers from 0 to 255")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _from_content(content: Any) -> list[_Row]:
    """Returns rows from json or yaml."""
    if isinstance(content, dict):
        key = next((key for key in LISTS if isinstance(content.get(key), list | dict)), None)
        if key is not None:
            content = content[key]
    if isinstance(content, dict):
        return [_from_item(key, value) for key, value in content.items()]
    if not isinstance(content, list):
        raise TypeError(f"{type(content).__name__} instead of a list or an object")
    return [_from_entry(entry) for entry in content]


def _from_item(key: Any, value: Any) -> _Row:
    if isinstance(value, list):
        return _Row(str(key).strip(), color=_color(value))
    if isinstance(value, str) or value is None:
        return _Row((value or "").strip(), int(key))
    if isinstance(value, dict):
        return _Row(str(value["name"]).strip(), int(key))
    if type(value) is int and not str(key).strip().isdigit():
        return _Row(str(key).strip(), value)
    raise ValueError(f"{key!r}: {value!r}")


def _from_entry(entry: Any) -> _Row:
    if isinstance(entry, str):
        return _Row(entry.strip())
    if not isinstance(entry, dict):
        raise TypeError(f"{entry!r} instead of a name")
    name = next((entry[column] for column in ("name", "label", "title", "class") if column in entry), None)
    if not isinstance(name, str):
        raise KeyError("name")
    if entry.get("evaluate") is False:  # Mapillary Vistas marks what its benchmark ignores this way
        name = ""
    color = entry.get("color")
    return _Row(
        name.strip(),
        None if entry.get("id") is None else int(entry["id"]),
        _color(color) if isinstance(color, list) else None,
    )
