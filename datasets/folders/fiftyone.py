"""Reads FiftyOneDataset, FiftyOne's own export: samples.json and metadata.json, with masks in the json or in files; last on top.

    {"samples": [{"filepath": "data/a.jpg", "tags": ["train"], "ground_truth": {"_cls": "Detections", "detections": [
        {"label": "cat", "bounding_box": [x, y, width, height], "mask": {"$binary": {"base64": "..."}}}]}}]}

Coordinates are shares of the image's size. A mask is the zlib stream of an array of NumPy, one of an object has the size of its
box. Fields of Detections, Polylines and Segmentation can be read. Neither datumaro nor supervision reads it.
"""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.class_names import read_names
from common.images import Exif, image_size, is_image
from common.polygons import even_odd, placed, rle_text
from folders.annotations import Record, RegionSource
from folders.json_files import read_json
from folders.lists import Ends
from folders.splits import usual_split
from kiloseg.storage.errors import DataError

KINDS = ("Detections", "Detection", "Polylines", "Polyline", "Segmentation")
"""These kinds of labels can label pixels."""


def is_fiftyone(root: Path, listed: list[str]) -> bool:
    """Whether a folder is FiftyOne's own export."""
    return (
        "samples.json" in listed and "metadata.json" in listed and "sample_fields" in read_json(root / "metadata.json")
    )


def fiftyone_source(
    root: Path, files: list[str], field: str | None, table: Path | None, given: Mapping[str, str], exif: Exif
) -> RegionSource:
    """Returns the labels of one field.

    Args:
        root: the folder of samples.json.
        files: all files below it, relative to it.
        field: the field, if the user names it.
        table: a table of the names of mask values, if the user gives one.
        given: what the user said about splits.
        exif: what to do with images that are to be shown turned.

    Raises:
        DataError: The structure differs, there is no such field, or several fields could be meant.
    """
    metadata, content = read_json(root / "metadata.json"), read_json(root / "samples.json")
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
        raise DataError(f"{root / 'samples.json'} has no list of samples: expected FiftyOneDataset; export it again")
    kinds = _kinds(metadata["sample_fields"])
    name = _choose(root, kinds, samples, field)
    targets = _targets(metadata, name, table)
    classes = (metadata.get("classes") or {}).get(name) or metadata.get("default_classes") or []
    images = [file for file in files if is_image(file) and not file.startswith("fields/")]
    there, arrays = Ends(images), Ends(files)

    def records() -> Iterator[Record]:
        for number, sample in enumerate(samples):
            yield _record(root, sample, number, name, targets, there, arrays, given, exif)

    labels = dict.fromkeys(targets.values()) if kinds[name] == "Segmentation" else dict.fromkeys(classes)
    return RegionSource(
        root=root,
        files=[root / "samples.json", root / "metadata.json", *([] if table is None else [table])],
        records=records,
        classes=(lambda: {label: label for label in labels}) if labels else None,
        overlap="last",
        images=images,
        stem="fiftyone",
        settings={"label_field": name},
    )


def _kinds(fields: Any) -> dict[str, str]:
    """Maps fields to the kind of their labels; the legacy export has an object of texts, others a list."""
    if isinstance(fields, dict):
        return {name: str(kind).rstrip(")").rpartition(".")[2] for name, kind in fields.items()}
    return {str(entry["name"]): str(entry.get("embedded_doc_type") or "").rpartition(".")[2] for entry in fields}


def _choose(root: Path, kinds: Mapping[str, str], samples: list[dict[str, Any]], field: str | None) -> str:
    can = [name for name, kind in kinds.items() if kind in KINDS]
    if field is not None:
        if field not in can:
            raise DataError(
                f"{root / 'metadata.json'} has no labels called {field}: expected one of {', '.join(can) or 'none'}"
            )
        return field
    shown = [name for name in can if any(_has_shape(sample.get(name)) for sample in samples)]
    if not shown:
        raise DataError(
            f"{root / 'samples.json'} has no masks or polylines in any field ({', '.join(can) or 'no labels at all'}): boxes do "
            "not label pixels; export a field of segmentations, of detections with masks, or of polylines"
        )
    if len(shown) > 1:
        raise DataError(
            f"{root / 'samples.json'} has labels in the fields {', '.join(shown)}: choose one with --label-field {shown[0]}"
        )
    return shown[0]


def _has_shape(value: Any) -> bool:
    return any(
        entry.get("_cls") in ("Segmentation", "Polyline") or entry.get("mask") or entry.get("mask_path")
        for entry in _entries(value)
    )


def _entries(value: Any) -> list[dict[str, Any]]:
    """Returns the labels in a field of a sample."""
    if not isinstance(value, dict):
        return []
    several = value.get("detections", value.get("polylines"))
    return [value] if several is None else list(several)


def _targets(metadata: dict[str, Any], name: str, table: Path | None) -> dict[int, str]:
    """Maps values of a segmentation to names; keys such as #ff0000 are colors."""
    if table is not None:
        return {value: label for value, label in read_names(table).items() if label}
    stated = (metadata.get("mask_targets") or {}).get(name) or metadata.get("default_mask_targets") or {}
    parsed = {int(key[1:], 16) if key.startswith("#") else int(key): _label(label) for key, label in stated.items()}
    return dict(sorted(parsed.items()))


def _label(label: Any) -> str:
    return str(label["label"] if isinstance(label, dict) else label).strip()


def _record(
    root: Path,
    sample: dict[str, Any],
    number: int,
    name: str,
    targets: Mapping[int, str],
    images: Ends,
    arrays: Ends,
    given: Mapping[str, str],
    exif: Exif,
) -> Record:
    where = f"{root / 'samples.json'}: sample {number} ({sample.get('filepath')})"
    image = images.find(str(sample.get("filepath") or ""))
    if image is None:
        raise DataError(f"{where}: its image is missing or ambiguous: export it too (export_media=True)")
    try:
        height, width = image_size(root / image, exif)
        ids: list[str] = []
        regions: list[bytes] = []
        for entry in _entries(sample.get(name)):
            if entry.get("_cls") == "Segmentation":
                parts = _segments(_array(entry, root, arrays, height, width), targets, height, width)
                ids += parts
                regions += parts.values()
            else:
                ids.append(str(entry["label"]).strip())
                regions.append(_region(entry, root, arrays, height, width))
    except DataError:
        raise
    except (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError, binascii.Error, zlib.error) as error:
        raise DataError(
            f"{where}: its field {name} cannot be read ({type(error).__name__}: {error}): export it again"
        ) from error
    splits = {split for tag in sample.get("tags") or [] if (split := usual_split(str(tag), given)) is not None}
    if len(splits) > 1:
        raise DataError(f"{where} has tags of the splits {', '.join(sorted(splits))}: expected one; correct its tags")
    split = splits.pop() if splits else ""
    return Record(image=image, split=split or "", height=height, width=width, category_ids=ids, segmentations=regions)


def _segments(values_HW: np.ndarray, targets: Mapping[int, str], height: int, width: int) -> dict[str, bytes]:
    """Returns the region of each class in a segmentation; 0 is nothing, if it has no name."""
    if values_HW.shape[:2] != (height, width):
        raise ValueError(f"a segmentation of {values_HW.shape[:2]}, its image has {height, width}")
    if values_HW.ndim == 3:
        wide = values_HW[..., :3].astype(np.int64)
        values_HW = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    present = np.unique(values_HW)
    unknown = [value for value in present.tolist() if value not in targets and value != 0]
    if unknown:
        raise ValueError(
            f"value {unknown[0]} has no name in mask_targets: set dataset.default_mask_targets and export again, or name a table "
            "with --names"
        )
    names = {targets[value] for value in present.tolist() if value in targets}
    return {
        name: rle_text(
            np.asfortranarray(np.isin(values_HW, [v for v in targets if targets[v] == name]).astype(np.uint8))
        )
        for name in sorted(names)
    }


def _region(entry: dict[str, Any], root: Path, arrays: Ends, height: int, width: int) -> bytes:
    if entry.get("_cls") == "Polyline":
        if not (entry.get("filled") or entry.get("closed")):
            return b"[]"  # a line has no inside
        return even_odd([[[x * width, y * height] for x, y in ring] for ring in entry["points"]], height, width)
    if not entry.get("mask") and not entry.get("mask_path"):
        return b"[]"  # a box
    x, y, box_width, box_height = (float(value) for value in entry["bounding_box"])
    # FiftyOne cuts places to whole pixels; the small number is for shares such as 29/60 that are not exact.
    left, top, right, down = (
        int(share * side + 1e-6)
        for share, side in ((x, width), (y, height), (x + box_width, width), (y + box_height, height))
    )
    part = _array(entry, root, arrays, height, width)
    part_HW = (part if part.ndim == 2 else part[..., 0]).astype(bool).astype(np.uint8)
    if part_HW.shape != (down - top, right - left):
        if right <= left or down <= top:
            return b"[]"
        part_HW = np.asarray(Image.fromarray(part_HW).resize((right - left, down - top), Image.Resampling.NEAREST))
    return placed(part_HW, left, top, height, width)


def _array(entry: dict[str, Any], root: Path, arrays: Ends, height: int, width: int) -> np.ndarray:
    """Returns the mask of a label, from the json or from its file; raises DataError and ValueError."""
    if entry.get("mask_path"):
        found = arrays.find(str(entry["mask_path"]))
        if found is None:
            raise DataError(f"{root}: the mask {entry['mask_path']} is missing or ambiguous: export it too")
        with Image.open(root / found, formats=["PNG", "JPEG", "BMP", "TIFF"]) as opened:
            return np.asarray(opened)
    value = entry["mask"]
    if isinstance(value, dict):
        binary = value["$binary"]
        value = binary["base64"] if isinstance(binary, dict) else binary
    largest = 4096 + 24 * (height + 1) * (width + 1)
    unpacked = zlib.decompressobj().decompress(base64.b64decode(value), largest)
    array = np.load(io.BytesIO(unpacked), allow_pickle=False)
    if array.ndim not in (2, 3) or array.dtype.kind not in "biu":
        raise ValueError(f"a mask of shape {array.shape} and type {array.dtype}")
    return array
