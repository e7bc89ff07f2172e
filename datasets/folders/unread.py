"""Recognizes what tools write that cannot be read, and says what to export instead."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from folders.coco_files import HEAD

MOST = 20
"""This many files of each suffix are looked at."""

INSTEAD = "export COCO json with segmentations, or masks with a table of names, and name that"

JSON = (
    (
        (b'"predicted_iou"', b'"segmentation"'),
        "is of Segment Anything: its masks have no class, so nothing can be learned from them; give each annotation a "
        "category_id and list categories, as in COCO json",
    ),
    ((b'"poly2d"',), f"is of BDD100K or Scalabel, which is not read: {INSTEAD}"),
    ((b'"box2d"',), f"is of BDD100K or Scalabel, which is not read: {INSTEAD}"),
    ((b'"bounding_box"', b'"labels"'), f"is FiftyOneImageDetectionDataset, which holds boxes without masks: {INSTEAD}"),
    ((b'"polygonlabels"',), "is not Label Studio's full export: choose JSON, not JSON-MIN, and export again"),
    ((b'"brushlabels"',), "is not Label Studio's full export: choose JSON, not JSON-MIN, and export again"),
    ((b'"data_row"',), f"is of Labelbox, which is not read: {INSTEAD}"),
    ((b'"imgHeight"', b'"objects"'), "holds Cityscapes' polygons: name the folder with its labelIds masks instead"),
)
"""What a json file holds in its beginning, and what is said of it."""

XML = (
    (
        (b"<polygon>", b"<annotation>"),
        f"is of the LabelMe of the web, whose xml is not read: {INSTEAD} (labelme's json is read)",
    ),
    (
        (b"<segm>", b"<annotation>"),
        f"is of the LabelMe of the web, whose xml is not read: {INSTEAD} (labelme's json is read)",
    ),
    ((b"<bndbox>",), f"holds PASCAL VOC's boxes, which do not label pixels: {INSTEAD}"),
    ((b"<track",), "holds tracks of a video: export its frames with 'CVAT for images 1.1'"),
)

SUFFIXES = {
    ".datum": f"is datumaro's binary format, which is not read: {INSTEAD}, or datumaro's json",
    ".arrow": f"is an Arrow file, which is not read: save it as Parquet, or {INSTEAD}",
    ".datumaro": f"is datumaro's binary format, which is not read: {INSTEAD}, or datumaro's json",
    ".tfrecord": f"is a TFRecord, which is not read: {INSTEAD}",
    ".ndjson": f"is a list of json lines, which is not read: {INSTEAD}",
    ".mat": f"is a MATLAB file, which is not read: {INSTEAD}",
    ".npy": f"is an array of NumPy, which is not read: {INSTEAD}",
    ".npz": f"is an archive of NumPy, which is not read: {INSTEAD}",
    ".zip": "is an archive: unpack it and name the folder",
    ".tar": "is an archive: unpack it and name the folder",
    ".gz": "is an archive: unpack it and name the folder",
    ".7z": "is an archive: unpack it and name the folder",
}


def is_labelme_web(path: Path, listed: list[str]) -> bool:
    """Whether a folder is of the LabelMe of the web, whose masks hold one object each."""
    return "of the LabelMe of the web" in (
        reason(path, [file for file in listed if file.lower().endswith(".xml")]) or ""
    )


def reason(path: Path, listed: list[str]) -> str | None:
    """Returns a sentence about the first file that is recognized but cannot be read, or None.

    Args:
        path: the folder or file that the user named.
        listed: the files in it, relative to it, or its name.
    """
    base = path if path.is_dir() else path.parent
    for suffix, known in ((".json", JSON), (".xml", XML)):
        for file in [file for file in listed if file.lower().endswith(suffix)][:MOST]:
            with (base / file).open("rb") as opened:
                text = opened.read(HEAD)
            for marks, sentence in known:
                if all(mark in text for mark in marks):
                    return f"{base / file} {sentence}"
    for file in listed:
        suffix = PurePosixPath(file).suffix.lower()
        if suffix in SUFFIXES:
            return f"{base / file} {SUFFIXES[suffix]}"
        if suffix == ".csv" and "via_region_data" in PurePosixPath(file).stem:
            return (
                f"{base / file} is VIA's csv, which is not read: export json (Annotation, Export Annotations as json)"
            )
    return None
