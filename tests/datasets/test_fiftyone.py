"""FiftyOne's samples.json and metadata.json are read as FiftyOne 1.22 writes them."""

import base64
import io
import zlib

import numpy as np
import pytest
from exports import X, build, masks_of
from PIL import Image
from trees import uint8, write_jpeg, write_json, write_png, write_text

from kiloseg.storage.errors import DataError


def packed(array, legacy=False):
    """An array as FiftyOne packs it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    text = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    return {"$binary": text, "$type": "00"} if legacy else {"$binary": {"base64": text, "subType": "00"}}


def detection(label, left, top, mask):
    height, width = mask.shape
    box = [left / 6, top / 4, width / 6, height / 4]
    return {"_cls": "Detection", "label": label, "tags": [], "bounding_box": box, "mask": packed(mask)}


def segmentation(**values):
    return {"_cls": "Segmentation", "tags": [], **values}


def fiftyone(root, samples, kinds, targets=None, legacy=False):
    """`samples`: tags and fields of each image."""
    content = []
    for number, (tags, fields) in enumerate(samples):
        write_jpeg(root / f"data/img {number}.jpg", 4, 6)
        content.append({"_id": {"$oid": str(number)}, "filepath": f"data/img {number}.jpg", "tags": tags, **fields})
    write_json(root / "samples.json", {"samples": content})
    entries = [{"name": "tags", "ftype": "fiftyone.core.fields.ListField", "embedded_doc_type": None}]
    entries += [{"name": name, "embedded_doc_type": f"fiftyone.core.labels.{kind}"} for name, kind in kinds.items()]
    fields = {
        name: f"fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.{kind})" for name, kind in kinds.items()
    }
    metadata = {"name": "x", "sample_fields": fields if legacy else entries, "classes": {}, "default_classes": []}
    write_json(root / "metadata.json", {**metadata, "mask_targets": {}, "default_mask_targets": targets or {}})


CORNER = np.array([[1, 1, 0], [1, 0, 1]], bool)


@pytest.mark.parametrize("legacy", [False, True])
def test_fiftyone_detections_with_masks(tmp_path, legacy):
    """The later of two objects lies on top, as FiftyOne draws them; a box without a mask has no shape and is counted."""
    box = {"_cls": "Detection", "label": "dog", "bounding_box": [0, 0, 1, 1]}
    objects = [detection("cat", 0, 0, np.ones((2, 2), bool)), detection("dog", 1, 1, CORNER), box]
    first = {"gt": {"_cls": "Detections", "detections": objects}}
    if legacy:
        objects[1]["mask"] = packed(CORNER, legacy=True)
    fiftyone(tmp_path / "set", [(["train"], first), (["validation"], first)], {"gt": "Detections"}, legacy=legacy)
    info = build(tmp_path, tmp_path / "set")
    expected = [[0, 0, X, X, X, X], [0, 1, 1, X, X, X], [X, 1, X, 1, X, X], [X] * 6]
    assert info.classes == ["cat", "dog"] and info.report["regions_without_shape"] == 2
    assert masks_of(tmp_path) == {"data_img_0": expected} and masks_of(tmp_path, "val") == {"data_img_1": expected}


def test_fiftyone_segmentations(tmp_path):
    """Values in the json, and the colors of a file, get their names from mask_targets; 0 is nothing unless it has a name."""
    root = tmp_path / "set"
    values = np.array([[0, 7, 7, 9, 9, 0]] * 4, np.uint8)
    fiftyone(
        root, [([], {"seg": segmentation(mask=packed(values))})], {"seg": "Segmentation"}, {"9": "cat", "7": "dog"}
    )
    info = build(tmp_path, root)
    assert info.classes == ["dog", "cat"] and masks_of(tmp_path) == {"data_img_0": [[X, 0, 0, 1, 1, X]] * 4}
    info = build(tmp_path, root, unlabeled="background")
    assert info.classes == ["background", "dog", "cat"] and masks_of(tmp_path) == {
        "data_img_0": [[0, 1, 1, 2, 2, 0]] * 4
    }
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255], [0, 0, 255], [0, 0, 0], [0, 0, 0]], np.uint8)
    (root / "fields/seg").mkdir(parents=True)
    Image.fromarray(np.tile(colors, (4, 1, 1))).save(root / "fields/seg/img 0.png")
    stored = segmentation(mask_path="fields/seg/img 0.png")
    fiftyone(root, [([], {"seg": stored})], {"seg": "Segmentation"}, {"#ff0000": "cat", "#0000ff": "dog"})
    assert build(tmp_path, root).classes == ["dog", "cat"]
    assert masks_of(tmp_path) == {"data_img_0": [[X, 1, 0, 0, X, X]] * 4}
    fiftyone(
        root, [([], {"seg": segmentation(mask=packed(values))})], {"seg": "Segmentation"}, {"7": "dog", "8": "cow"}
    )
    with pytest.raises(
        DataError, match=r"img 0.jpg\): its field seg cannot be read .*value 9 has no name in mask_targets"
    ):
        build(tmp_path, root)
    write_text(root / "n.csv", "id,name\n7,dog\n9,cat\n")
    assert build(tmp_path, root, names=root / "n.csv").classes == ["dog", "cat"]


def test_fiftyone_polylines(tmp_path):
    """A second ring is a hole; a line has no inside."""
    ring = [[1 / 6, 1 / 4], [3 / 6, 1 / 4], [3 / 6, 3 / 4], [1 / 6, 3 / 4]]
    whole = [[0, 0], [4 / 6, 0], [4 / 6, 1], [0, 1]]
    shapes = [
        {"_cls": "Polyline", "label": "cat", "points": [whole, ring], "closed": True, "filled": True},
        {
            "_cls": "Polyline",
            "label": "dog",
            "points": [[[5 / 6, 0], [1, 0], [1, 1], [5 / 6, 1]]],
            "closed": True,
            "filled": True,
        },
        {"_cls": "Polyline", "label": "dog", "points": [[[0, 0], [1, 1]]], "closed": False, "filled": False},
    ]
    fields = {"poly": {"_cls": "Polylines", "polylines": shapes}}
    fiftyone(tmp_path / "set", [([], fields)], {"poly": "Polylines"})
    build(tmp_path, tmp_path / "set")
    hole = [0, X, X, 0, X, 1]
    assert masks_of(tmp_path) == {"data_img_0": [[0, 0, 0, 0, X, 1], hole, hole, [0, 0, 0, 0, X, 1]]}


def test_fiftyone_that_asks_or_cannot_be(tmp_path):
    root = tmp_path / "set"
    gt = {"_cls": "Detections", "detections": [detection("cat", 0, 0, CORNER), detection("dog", 3, 0, CORNER)]}
    both = {"gt": gt, "seg": segmentation(mask=packed(np.ones((4, 6), np.uint8)))}
    kinds = {"gt": "Detections", "seg": "Segmentation", "text": "Classification"}
    fiftyone(root, [(["train"], both)], kinds, {"1": "cat", "2": "dog"})
    with pytest.raises(DataError, match="has labels in the fields gt, seg: choose one with --label-field gt"):
        build(tmp_path, root)
    build(tmp_path, root, label_field="gt")
    ours = [[0, 0, X, 1, 1, X], [0, X, 0, 1, X, 1], [X] * 6, [X] * 6]
    assert masks_of(tmp_path) == {"data_img_0": ours}
    build(tmp_path, root, label_field="seg")  # the same folder: another field is another data set
    assert masks_of(tmp_path) == {"data_img_0": [[0] * 6] * 4}
    with pytest.raises(DataError, match="no labels called text: expected one of gt, seg"):
        build(tmp_path, root, label_field="text")
    boxes = {"_cls": "Detections", "detections": [{"_cls": "Detection", "label": "cat", "bounding_box": [0, 0, 1, 1]}]}
    fiftyone(root, [([], {"gt": boxes})], {"gt": "Detections"})
    with pytest.raises(DataError, match=r"no masks or polylines in any field \(gt\): boxes do not label pixels"):
        build(tmp_path, root)
    fiftyone(root, [(["train", "val"], {"gt": gt})], {"gt": "Detections"})
    with pytest.raises(DataError, match="has tags of the splits train, val: expected one"):
        build(tmp_path, root)
    huge = io.BytesIO()
    np.save(huge, np.zeros((2000, 2000), np.uint8))
    gt["detections"][0]["mask"]["$binary"]["base64"] = base64.b64encode(zlib.compress(huge.getvalue())).decode()
    fiftyone(root, [([], {"gt": gt})], {"gt": "Detections"})
    with pytest.raises(DataError, match="its field gt cannot be read"):  # unpacked no further than its image is large
        build(tmp_path, root)
    (root / "data/img 0.jpg").unlink()
    with pytest.raises(DataError, match="its image is missing or ambiguous: export it too"):
        build(tmp_path, root)


@pytest.mark.parametrize("places", ["data/{}.jpg labels/{}.png", "val/data/{}.jpg val/labels/{}.png"])
def test_fiftyone_segmentation_directory(tmp_path, places):
    """It holds no names, so the command asks for them."""
    image, mask = places.split()
    for name in "ab":
        write_jpeg(tmp_path / "set" / image.format(name), 1, 3)
        write_png(tmp_path / "set" / mask.format(name), uint8([0, 1, 2]))
    with pytest.raises(DataError, match="no table of class names"):
        build(tmp_path, tmp_path / "set")
    write_text(tmp_path / "n.csv", "id,name\n0,\n1,cat\n2,dog\n")
    build(tmp_path, tmp_path / "set", names=tmp_path / "n.csv")
    assert [X, 0, 1] in next(iter(masks_of(tmp_path, "val").values()))
