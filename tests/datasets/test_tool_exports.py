"""FiftyOne, Ultralytics, VIA, datumaro and several annotators in Label Studio, in the exact forms that the tools wrote; and what
cannot be read, each with a sentence that says what to export instead."""

import base64
import io
import json
import zlib

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from trees import IGNORE, read_split, uint8, write_jpeg, write_json, write_png, write_text

import folder
from common.class_names import read_names
from folders.arguments import Arguments
from kiloseg.data.description import read_info
from kiloseg.data.reading.decoding import decode_pixels
from kiloseg.data.writing.shard import MAX_KEY_BYTES
from kiloseg.storage.errors import DataError

X = IGNORE
LEFT, RIGHT = [[0, 0], [3, 0], [3, 4], [0, 4]], [[3, 0], [6, 0], [6, 4], [3, 4]]
BOTH = [[0, 0, 0, 1, 1, 1]] * 4


def build(tmp_path, path, **fields):
    return folder.build_folder(Arguments(path=path, out=str(tmp_path / "out"), processes=1, **fields))


def masks_of(tmp_path, name="train"):
    return {key: sample[1] for key, sample in read_split(tmp_path / "out", name).items()}


def flat(points):
    return [value for point in points for value in point]


# FiftyOne: samples.json and metadata.json as FiftyOne 1.22 writes them


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


# Ultralytics


def ultralytics_masks(root, yaml, mask=((0, 7, 8, 255, 3, 200),)):
    for split in ("train", "val"):
        write_jpeg(root / f"images/{split}/{split}.jpg", len(mask), len(mask[0]))
        write_png(root / f"masks/{split}/{split}.png", uint8(*mask))
    write_text(root / "things.yaml", yaml)


def test_ultralytics_masks_with_a_label_mapping(tmp_path):
    """As in its cityscapes.yaml: raw ids become others, several the same, and the rest are ids as they are."""
    yaml = """path: things
train: images/train
val: images/val
masks_dir: masks
names: {0: road, 1: sidewalk, 3: tree}
label_mapping: {-1: ignore_label, 0: ignore_label, 7: 0, 8: 1, 200: 0, 2: 255, 1: null}
"""
    ultralytics_masks(tmp_path / "set", yaml)
    info = build(tmp_path, tmp_path / "set")
    assert info.classes == ["road", "sidewalk", "tree"]
    assert masks_of(tmp_path) == {"images_train_train": [[X, 0, 1, X, 2, 0]]}
    assert set(masks_of(tmp_path, "val")) == {"images_val_val"}
    ultralytics_masks(tmp_path / "set", yaml.replace("7: 0", "7: 2"))
    with pytest.raises(DataError, match="label_mapping leads to 2, which names lacks"):
        build(tmp_path, tmp_path / "set")


def test_ultralytics_masks_elsewhere_and_lists(tmp_path, capsys):
    """masks_dir may have any name, and train and val may be lists of files."""
    root = tmp_path / "set"
    for name in "abc":
        write_jpeg(root / f"images/{name}.jpg", 1, 2)
        write_png(root / f"truth/{name}.png", uint8([0, 1]))
    write_text(root / "data.yaml", "train: t.txt\nvalidation: [v.txt]\nmasks_dir: truth\nnames: [cat, dog]\n")
    write_text(root / "t.txt", "./images/a.jpg\r\n./images/c.jpg\r\n")
    write_text(root / "v.txt", "\ufeff./images/b.jpg\n")
    build(tmp_path, root)
    assert set(masks_of(tmp_path)) == {"images_a", "images_c"} and masks_of(tmp_path, "val") == {"images_b": [[0, 1]]}
    (root / "v.txt").unlink()
    with pytest.raises(DataError, match=r"v.txt is missing: data.yaml names it as a list of images"):
        build(tmp_path, root)


POLYGONS = "0 0 0 .5 0 .5 1 0 1\n1 .5 0 1 0 1 1 .5 1\n"


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}", '{"0": cat, "1": dog}', "\n  - cat\n  - dog"])
@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("images/a", "images/b"),
        ("[images/a, images/c]", "images/b"),
        ("../set/images/a", "../set/images/b"),
        ("/home/me/set/images/a/", "D:\\set\\images\\b"),
        ("./images/a/", "./images/b/"),
        ("a.txt", "b.txt"),
    ],
)
def test_data_yaml_of_ultralytics(tmp_path, names, train, val):
    root = tmp_path / "set"
    for name in "abc":
        write_jpeg(root / f"images/{name}/{name}.jpg", 4, 6)
        write_text(root / f"labels/{name}/{name}.txt", POLYGONS)
        write_text(root / f"{name}.txt", f"./images/{name}/{name}.jpg\n")
    write_text(root / "data.yaml", f"path: ../datasets/set\ntrain: {train}\nval: {val}\ntest:\nnc: 2\nnames: {names}\n")
    assert build(tmp_path, root).classes == ["cat", "dog"]
    assert "images_a_a" in masks_of(tmp_path) and masks_of(tmp_path, "val") == {"images_b_b": BOTH}
    assert ("images_c_c" in masks_of(tmp_path)) == ("images/c" in train)


def test_yaml_files_of_other_programs_are_left_alone(tmp_path, capsys):
    coco(tmp_path / "set", ["a.jpg"], [(0, 1, LEFT), (0, 2, RIGHT)])
    write_text(tmp_path / "set/mkdocs.yml", "site: !ENV [A, b]\n")
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"a": BOTH} and "cannot be read as" not in capsys.readouterr().out


def test_a_split_of_data_yaml_without_images_is_said(tmp_path, capsys):
    root = tmp_path / "set"
    for name in "ab":
        write_jpeg(root / f"images/{name}/{name}.jpg", 4, 6)
        write_text(root / f"labels/{name}/{name}.TXT", POLYGONS)  # of a file system without cases
    write_text(root / "dataset.YAML", "train: images/a\nval: images/gone\nnames: [cat, dog]\n")
    build(tmp_path, root)
    printed = capsys.readouterr().out
    assert "dataset.YAML: val is images/gone, where no labeled image is" in printed
    assert "left out: 1 images that dataset.YAML does not list" in printed and masks_of(tmp_path) == {
        "images_a_a": BOTH
    }


# VGG Image Annotator


def region(points, **attributes):
    xs, ys = zip(*points, strict=True)
    shape = {"name": "polygon", "all_points_x": list(xs), "all_points_y": list(ys)}
    return {"shape_attributes": shape, "region_attributes": attributes}


def via(root, regions, project=False, name="a.jpg"):
    write_jpeg(root / "images" / name, 4, 6)
    images = {f"{name}1234": {"filename": name, "size": 1234, "regions": regions, "file_attributes": {}}}
    content = {"_via_settings": {}, "_via_img_metadata": images, "_via_attributes": {"region": {}}}
    write_json(root / "via_region_data.json", content if project else images)


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_via(tmp_path, project, version):
    regions = [region(LEFT, kind="cat"), region(RIGHT, kind="dog")]
    via(tmp_path / "set", regions if version == 2 else {"0": regions[0], "1": regions[1]}, project)
    info = build(tmp_path, tmp_path / "set")
    assert info.classes == ["cat", "dog"] and masks_of(tmp_path) == {"images_a": BOTH}


def test_via_shapes_and_attributes(tmp_path):
    rect = {"name": "rect", "x": 0, "y": 0, "width": 3, "height": 4}
    circle = {"name": "circle", "cx": 4.5, "cy": 1.5, "r": 0.6}
    point = {"name": "point", "cx": 1, "cy": 1}
    regions = [
        {"shape_attributes": rect, "region_attributes": {"kind": {"cat": True, "dog": False}, "seen": "yes"}},
        {"shape_attributes": circle, "region_attributes": {"kind": {"dog": True}, "seen": "no"}},
        {"shape_attributes": point, "region_attributes": {"kind": {"dog": True}, "seen": "no"}},
    ]
    via(tmp_path / "set", regions)
    with pytest.raises(DataError, match=r"the attributes kind, seen: choose the one .* --label-field kind"):
        build(tmp_path, tmp_path / "set")
    info = build(tmp_path, tmp_path / "set", label_field="kind")
    ours = [[0, 0, 0, X, X, X], [0, 0, 0, X, 1, X], [0, 0, 0, X, X, X], [0, 0, 0, X, X, X]]
    assert info.report["regions_without_shape"] == 1 and masks_of(tmp_path) == {"images_a": ours}
    regions[0]["region_attributes"]["kind"]["dog"] = True
    via(tmp_path / "set", regions)
    with pytest.raises(DataError, match=r"image a.jpg, region 0 has 2 values of kind: expected one class"):
        build(tmp_path, tmp_path / "set", label_field="kind")
    via(tmp_path / "set", [region(LEFT), region(RIGHT)])
    with pytest.raises(DataError, match="no region has an attribute with a value, so no class: give them one in VIA"):
        build(tmp_path, tmp_path / "set")


# datumaro's json


def datumaro(root, annotations, subset="default", labels=("cat", "dog")):
    write_jpeg(root / f"images/{subset}/a.jpg", 4, 6)
    content = {
        "dm_format_version": "1.0",
        "media_type": 2,
        "infos": {},
        "categories": {"label": {"label_groups": [], "labels": [{"name": n, "parent": ""} for n in labels]}},
        "items": [{"id": "a", "annotations": annotations, "image": {"path": "a.jpg", "size": [4, 6]}, "attr": {}}],
    }
    write_json(root / f"annotations/{subset}.json", content)


def test_datumaro(tmp_path):
    """z_order decides over the order of the file; a mask is COCO's RLE; boxes and labels of the whole image are no regions."""
    root = tmp_path / "set"
    rle = pycocotools.mask.encode(np.asfortranarray([[0, 0, 0, 1, 1, 1]] * 4, dtype=np.uint8))
    annotations = [
        {"type": "polygon", "label_id": 0, "points": flat(LEFT), "z_order": 1},
        {"type": "polygon", "label_id": 1, "points": flat(LEFT), "z_order": 0},
        {"type": "mask", "label_id": 1, "rle": {"size": [4, 6], "counts": rle["counts"].decode()}, "z_order": 0},
        {"type": "bbox", "label_id": 1, "bbox": [0, 0, 6, 4], "z_order": 9},
        {"type": "label", "label_id": 1},
    ]
    for subset in ("train", "val"):
        datumaro(root, annotations, subset)
    info = build(tmp_path, root)
    assert info.classes == ["cat", "dog"] and info.report["regions_without_shape"] == 2
    assert masks_of(tmp_path) == {"images_train_a": BOTH} and masks_of(tmp_path, "val") == {"images_val_a": BOTH}
    datumaro(root, annotations, "val", labels=("dog", "cat"))
    with pytest.raises(DataError, match="have different labels: expected the same in the same order"):
        build(tmp_path, root)


# Label Studio: several annotators, several labels


def labels_of(kind, points, *labels, **more):
    shares = [[x / 6 * 100, y / 4 * 100] for x, y in points]
    size = {"original_width": 6, "original_height": 4}
    return {**size, "type": kind, "value": {"points": shares, kind: list(labels)}, **more}


def by(person, *results, **more):
    return {"completed_by": person, "result": list(results), **more}


def tasks(root, *annotations):
    for number in range(len(annotations)):
        write_jpeg(root / f"{number}.jpg", 4, 6)
    content = [
        {"id": number, "data": {"image": f"/data/upload/1/0a1b2c3d-{number}.jpg"}, "annotations": made}
        for number, made in enumerate(annotations)
    ]
    write_json(root / "p.json", content)


CAT_DOG = labels_of("polygonlabels", LEFT, "cat"), labels_of("polygonlabels", RIGHT, "dog")
DOG_CAT = labels_of("polygonlabels", LEFT, "dog"), labels_of("polygonlabels", RIGHT, "cat")


def test_several_annotators(tmp_path, capsys):
    """Who counts is said, counted and chosen; an image that nobody annotated is not one without objects."""
    root = tmp_path / "set"
    other = [[1, 1, 1, 0, 0, 0]] * 4
    first, second = by({"id": 3, "email": "a@b.c"}, *CAT_DOG), by(4, *DOG_CAT)
    tasks(root, [by(9, *DOG_CAT, was_cancelled=True), first, second], [by(9, was_cancelled=True)], [])
    build(tmp_path, root, unlabeled="ignore")
    printed = capsys.readouterr().out
    assert "report: left out: 1 annotations of images that have several (--annotator first)" in printed
    assert "report: left out: 2 images without an annotation that counts" in printed
    assert masks_of(tmp_path) == {"0": BOTH}
    for annotator, expected in (("last", other), ("4", other), ("a@b.c", BOTH), ("3", BOTH)):
        build(tmp_path, root, annotator=annotator)
        assert masks_of(tmp_path) == {"0": expected}
    with pytest.raises(DataError, match=r"no annotation is by 5: expected --annotator first, last or 3, 4, a@b\.c"):
        build(tmp_path, root, annotator="5")
    tasks(root, [first, {**second, "ground_truth": True}])
    build(tmp_path, root)
    assert masks_of(tmp_path) == {"0": other}


def test_several_labels_of_a_region(tmp_path, capsys):
    root = tmp_path / "set"
    twice = labels_of("polygonlabels", RIGHT, "dog", "bird")
    tasks(root, [by(1, CAT_DOG[0], twice, labels_of("polygonlabels", [[0, 0], [0, 1], [0, 2]], "bird"))])
    build(tmp_path, root)
    assert "left out: 1 further labels of regions that have several (--region-label first)" in capsys.readouterr().out
    assert masks_of(tmp_path) == {"0": [[1, 1, 1, 2, 2, 2]] * 4}
    build(tmp_path, root, region_label="last")
    assert masks_of(tmp_path) == {"0": [[1, 1, 1, 0, 0, 0]] * 4}


def test_labels_apart_from_shapes(tmp_path):
    """A template of Polygon and Labels exports a shape and its labels as two results with one id."""
    results = []
    for number, (points, label) in enumerate(((LEFT, "cat"), (RIGHT, "dog"))):
        shape = labels_of("polygon", points, id=f"r{number}")
        del shape["value"]["polygon"]
        results += [shape, {**shape, "type": "labels", "value": {**shape["value"], "labels": [label]}}]
    tasks(tmp_path / "set", [by(1, *results)])
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"0": BOTH}


# What is recognized and not read


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "sa_1.json",
            json.dumps(
                {
                    "image": {"image_id": 1, "width": 6, "height": 4, "file_name": "a.jpg"},
                    "annotations": [{"segmentation": {"size": [4, 6], "counts": "4T1"}, "predicted_iou": 0.9, "id": 1}],
                }
            ),
            "is of Segment Anything: its masks have no class",
        ),
        (
            "Annotations/a.xml",
            "<annotation><filename>a.jpg</filename><object><name>cat</name><deleted>0</deleted><polygon><pt><x>1</x>"
            "<y>2</y></pt></polygon></object></annotation>",
            "is of the LabelMe of the web, whose xml is not read",
        ),
        (
            "Annotations/a.xml",
            "<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>",
            "holds PASCAL VOC's boxes, which do not label pixels",
        ),
        (
            "labels.json",
            '[{"name": "a.jpg", "labels": [{"category": "cat", "poly2d": []}]}]',
            "is of BDD100K or Scalabel",
        ),
        (
            "labels.json",
            '{"classes": null,"labels": {"a": [{"label": "cat","bounding_box": [0,0,1,1]}]}}',
            "is FiftyOneImageDetectionDataset, which holds boxes without masks",
        ),
        (
            "p.json",
            '[{"image": "/data/upload/a.jpg", "label": [{"points": [[0,0]], "polygonlabels": ["cat"]}]}]',
            "is not Label Studio's full export: choose JSON, not JSON-MIN",
        ),
        ("via_region_data.csv", "filename,file_size\n", "is VIA's csv, which is not read: export json"),
        ("export.zip", "PK", "is an archive: unpack it and name the folder"),
        ("train.tfrecord", "x", "is a TFRecord, which is not read"),
        ("a.datum", "x", "is datumaro's binary format, which is not read"),
    ],
)
def test_what_is_recognized_is_refused_with_a_sentence(tmp_path, file, text, message):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    write_text(tmp_path / "set" / file, text)
    with pytest.raises(DataError, match=message):
        build(tmp_path, tmp_path / "set")


# What the files do not tell


def test_id_0_of_datumaros_kitti_asks(tmp_path):
    """datumaro writes 0 both for its first class and where there is no annotation."""
    root = tmp_path / "set"
    write_png(root / "train/image_2/a.png", uint8([0, 0, 0]))
    write_png(root / "train/semantic/a.png", uint8([0, 1, 0]))
    write_text(root / "label_colors.txt", " cat\n dog\n")
    with pytest.raises(
        DataError, match=r"id 0 is 'cat', and datumaro also writes 0 where there is no annotation.*--ignore-id 0"
    ):
        build(tmp_path, root)
    build(tmp_path, root, ignore_id=0)
    assert masks_of(tmp_path) == {"train_image_2_a": [[X, 1, X]]}
    build(tmp_path, root, names=root / "label_colors.txt")
    assert masks_of(tmp_path) == {"train_image_2_a": [[0, 1, 0]]}
    write_text(root / "label_colors.txt", "0 0 0 unlabeled\n1 2 3 cat\n")
    assert build(tmp_path, root).classes == ["unlabeled", "cat"]


def test_datumaros_camvid_without_colors_is_refused(tmp_path):
    """Its colors are VOC's, but the first class has the second color."""
    root = tmp_path / "set"
    write_png(root / "train/a.png", uint8([0, 0, 0]))
    write_png(root / "trainannot/a.png", uint8([[128, 0, 0], [0, 128, 0], [0, 0, 0]]))
    write_text(root / "label_colors.txt", " cat\n dog\n bird\n")
    with pytest.raises(DataError, match=r"label_colors.txt has no colors, so nothing tells which class a color"):
        build(tmp_path, root, colormap="voc")


def test_labelme_of_the_web_with_masks_is_refused(tmp_path):
    """As datumaro writes it: a mask an object, named by an xml."""
    root = tmp_path / "set"
    write_jpeg(root / "Images/train/a.jpg", 1, 3)
    write_png(root / "Masks/train/a_mask_0.png", uint8([0, 255, 255]))
    segment = "<object><name>cat</name><segm><mask>a_mask_0.png</mask></segm></object>"
    write_text(root / "Annotations/train/a.xml", f"<annotation><filename>a.jpg</filename>{segment}</annotation>")
    with pytest.raises(DataError, match="is of the LabelMe of the web, whose xml is not read"):
        build(tmp_path, root)


def masked(root, save, names):
    write_jpeg(root / "images/a.jpg", 1, 4)
    (root / "masks").mkdir(parents=True, exist_ok=True)
    save(root / "masks/a.png")
    write_json(root / "classes.json", names)


def test_8_bit_masks_under_a_table_of_more_ids(tmp_path, capsys):
    names = {str(number): f"c{number}" for number in range(300)}
    masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 2, 44])).save, names)
    build(tmp_path, tmp_path / "set")
    assert "warning: 1 masks have 8 bits, though classes have ids above 255" in capsys.readouterr().out
    masked(tmp_path / "set", Image.fromarray(np.array([[0, 1, 2, 299]], np.uint16)).save, names)
    build(tmp_path, tmp_path / "set")
    assert "8 bits" not in capsys.readouterr().out
    with pytest.raises(DataError, match="have 8 bits, though classes have ids above 255"):
        masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 2, 44])).save, names)
        build(tmp_path, tmp_path / "set", strict=True)


def test_masks_by_transparency_are_refused(tmp_path):
    """Their gray values are all 0, which would be class 0 everywhere."""
    pixels = np.zeros((1, 4, 4), np.uint8)
    pixels[0, 1:3, 3] = 255
    masked(tmp_path / "set", Image.fromarray(pixels).save, ["sky", "tree"])
    with pytest.raises(DataError, match=r"a.png has transparent pixels: ids are expected in its gray values"):
        build(tmp_path, tmp_path / "set")
    pixels[..., 3] = 255
    pixels[0, 1:3, :3] = 1
    masked(tmp_path / "set", Image.fromarray(pixels).save, ["sky", "tree"])
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"images_a": [[0, 1, 1, 0]]}


def test_a_palette_of_grays_does_not_tell_the_ids(tmp_path):
    """Programs that make files smaller write the gray values 0, 7, 9 as indices 0, 1, 2."""
    palette = Image.fromarray(uint8([0, 1, 2, 1])).convert("P")
    palette.putpalette([0, 0, 0, 7, 7, 7, 9, 9, 9])
    masked(tmp_path / "set", palette.save, [f"c{number}" for number in range(10)])
    with pytest.raises(DataError, match=r"palette of grays, in which index 1 is gray 7: either may be the id"):
        build(tmp_path, tmp_path / "set")
    palette.putpalette([0, 0, 0, 1, 1, 1, 2, 2, 2])
    masked(tmp_path / "set", palette.save, [f"c{number}" for number in range(10)])
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"images_a": [[0, 1, 2, 1]]}


@pytest.mark.parametrize(
    ("shape", "warned"), [(LEFT, True), ([*LEFT, LEFT[0]], True), ([[0, 0], [3, 1], [3, 4], [0, 4]], False)]
)
def test_regions_that_are_all_boxes_are_warned_of(tmp_path, capsys, shape, warned):
    """Converters write the corners of a box as a polygon: the json looks as if it held shapes."""
    coco(tmp_path / "set", ["a.jpg"], [(0, 1, shape), (0, 2, RIGHT)])
    build(tmp_path, tmp_path / "set")
    assert ("all 2 regions are upright boxes" in capsys.readouterr().out) == warned


def test_a_palette_of_grays_whose_ids_the_table_tells(tmp_path):
    """GIF has no other form: Carvana's masks of 0 and 255 are indices 0 and 1, whichever of the two the table names."""
    write_jpeg(tmp_path / "set/train/a.jpg", 1, 4)
    (tmp_path / "set/train_masks").mkdir()
    Image.fromarray(uint8([0, 255, 255, 0])).save(tmp_path / "set/train_masks/a_mask.gif")
    for car in (1, 255):
        write_text(tmp_path / "set/classes.csv", f"id,name\n0,background\n{car},car\n")
        build(tmp_path, tmp_path / "set")
        assert masks_of(tmp_path) == {"train_a": [[0, 1, 1, 0]]}


def test_labelmes_own_labels(tmp_path):
    """__ignore__ is ignored also over another object, and _background_ is the background."""
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    middle = [[2, 0], [4, 0], [4, 4], [2, 4]]
    shapes = [
        {"label": label, "points": points, "shape_type": "polygon"}
        for label, points in (("cat", LEFT), ("_background_", RIGHT), ("__ignore__", middle))
    ]
    content = {"version": "5", "shapes": shapes, "imagePath": "a.jpg", "imageHeight": 4, "imageWidth": 6}
    write_json(tmp_path / "set/a.json", content)
    info = build(tmp_path, tmp_path / "set", unlabeled="background")
    assert info.classes == ["background", "cat"] and info.background == 0
    assert masks_of(tmp_path) == {"a": [[1, 1, X, X, 0, 0]] * 4}


def test_names_in_two_cases_are_warned_of(tmp_path, capsys):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    via(tmp_path / "set", [region(LEFT, kind="Traffic light"), region(RIGHT, kind="traffic  light")])
    build(tmp_path, tmp_path / "set")
    assert "1 names of classes differ from another in case or blanks alone: 'Traffic light'" in capsys.readouterr().out


def coco(root, images, shapes):
    """`images`: files; `shapes`: number of the image, category and points."""
    content = {
        "images": [{"id": n, "file_name": name, "height": 4, "width": 6} for n, name in enumerate(images)],
        "annotations": [{"image_id": n, "category_id": c, "segmentation": [flat(s)]} for n, c, s in shapes],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    for name in images:
        write_jpeg(root / name, 4, 6)
    write_json(root / "i.json", content)


def test_regions_outside_of_their_image_are_counted(tmp_path, capsys):
    """As after resizing images without their annotations."""
    outside = [[x + 6, y] for x, y in LEFT]
    coco(tmp_path / "set", ["a.jpg"], [(0, 1, LEFT), (0, 2, outside), (0, 2, RIGHT)])
    info = build(tmp_path, tmp_path / "set")
    assert info.report["regions_without_pixel"] == 1 and info.report["objects_hidden"] == 0
    assert "warning: 1 of 3 regions have no pixel: they lie outside of their images" in capsys.readouterr().out


def test_names_of_files_that_tell_the_split(tmp_path, capsys):
    """COCO's of 2014 and ADE20K's, all in one folder: they are not divided anew."""
    names = ["COCO_train2014_1.jpg", "COCO_val2014_1.jpg", "COCO_train2014_2.jpg"]
    coco(tmp_path / "set", names, [(n, c, s) for n in range(3) for c, s in ((1, LEFT), (2, RIGHT))])
    build(tmp_path, tmp_path / "set")
    assert set(masks_of(tmp_path)) == {"COCO_train2014_1", "COCO_train2014_2"}
    assert set(masks_of(tmp_path, "val")) == {"COCO_val2014_1"}
    assert "the names of all files hold train, val, which are taken as their splits" in capsys.readouterr().out


def test_folders_that_look_like_splits_ask(tmp_path):
    names = ["train_v2/a.jpg", "val_v2/a.jpg", "train_v2/b.jpg"]
    coco(tmp_path / "set", names, [(n, c, s) for n in range(3) for c, s in ((1, LEFT), (2, RIGHT))])
    with pytest.raises(DataError, match="look like splits: say which with --splits train_v2=train val_v2=val"):
        build(tmp_path, tmp_path / "set")
    build(tmp_path, tmp_path / "set", splits=("train_v2=train", "val_v2=val"))
    assert set(masks_of(tmp_path, "val")) == {"val_v2_a"}


def test_masks_of_no_image_are_counted(tmp_path, capsys):
    masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 2, 1])).save, ["a", "b", "c"])
    write_png(tmp_path / "set/masks/gone.png", uint8([0]))
    build(tmp_path, tmp_path / "set")
    assert "left out: 1 files among the masks that belong to no image" in capsys.readouterr().out
    build(
        tmp_path,
        None,
        images=tmp_path / "set/images",
        masks=tmp_path / "set/masks",
        names=tmp_path / "set/classes.json",
    )
    assert "left out: 1 files among the masks that belong to no image" in capsys.readouterr().out
    write_jpeg(tmp_path / "set/images/a_rgb.jpg", 1, 4)
    with pytest.raises(DataError, match=r"masks/a.png would be the mask of images/a.jpg and of images/a_rgb.jpg"):
        build(tmp_path, tmp_path / "set")


def test_two_tables_that_differ_ask(tmp_path):
    masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 2, 1])).save, ["a", "b", "c"])
    write_text(tmp_path / "set/labels.txt", "notes\n\nabout labels\n")  # no table
    write_text(tmp_path / "set/names.txt", "a\nb\nc\n")
    assert build(tmp_path, tmp_path / "set").classes == ["a", "b", "c"]
    write_text(tmp_path / "set/names.txt", "c\nb\na\n")
    with pytest.raises(
        DataError, match=r"classes.json and .*names.txt differ: expected the same classes in all splits and tables"
    ):
        build(tmp_path, tmp_path / "set")
    assert build(tmp_path, tmp_path / "set", names=tmp_path / "set/names.txt").classes == ["c", "b", "a"]


def test_images_that_no_annotation_lists_are_counted_with_images_and_annotations(tmp_path, capsys):
    coco(tmp_path / "set", ["a.jpg"], [(0, 1, LEFT), (0, 2, RIGHT)])
    write_jpeg(tmp_path / "set/b.jpg")
    build(tmp_path, None, images=tmp_path / "set", annotations=tmp_path / "set/i.json")
    assert "left out: 1 images without annotations or of a split that is not built" in capsys.readouterr().out


def test_the_line_says_what_a_reading_amounts_to(tmp_path, capsys):
    masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 2, 1])).save, ["a", "b", "c"])
    build(tmp_path, tmp_path / "set")
    table = tmp_path / "set/classes.json"
    printed = capsys.readouterr().out
    assert f"is read as 1 images with masks, names from classes.json (--format masks --names {table})" in printed
    coco(tmp_path / "other", ["a.jpg"], [(0, 1, LEFT), (0, 2, RIGHT)])
    build(tmp_path, tmp_path / "other", unlabeled="background")
    assert "(--format coco --overlap smallest --unlabeled background)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["cmyk", "gray", "palette", "progressive", "alpha"])
def test_images_of_any_mode_are_stored_and_decoded_as_viewers_show_them(tmp_path, kind):
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    image = Image.fromarray(colors)
    path = tmp_path / f"set/images/a.{'png' if kind in ('palette', 'alpha') else 'jpg'}"
    path.parent.mkdir(parents=True)
    options = {"progressive": True} if kind == "progressive" else {}
    if kind == "palette":
        options["transparency"] = 3
    modes = {"cmyk": "CMYK", "gray": "L", "palette": "P", "alpha": "RGBA"}
    image.convert(modes.get(kind, "RGB")).save(path, **options)
    write_png(tmp_path / "set/masks/a.png", np.zeros((8, 8), np.uint8) + np.eye(8, dtype=np.uint8))
    write_text(tmp_path / "set/classes.txt", "a\nb\n")
    build(tmp_path, tmp_path / "set")
    data = read_split(tmp_path / "out", "train")["images_a"][0]
    assert data == path.read_bytes()
    with Image.open(path) as seen:
        assert np.abs(decode_pixels(data).astype(int) - np.asarray(seen.convert("RGB"))).max() <= 2


def test_an_image_of_16_bits_is_refused_by_its_name(tmp_path):
    write_png(tmp_path / "set/images/a.png", np.zeros((1, 2), np.uint16))
    write_png(tmp_path / "set/masks/a.png", uint8([0, 1]))
    write_text(tmp_path / "set/classes.txt", "a\nb\n")
    with pytest.raises(DataError, match=r"images/a.png has one channel of 16 or more bits: expected 8 bits a channel"):
        build(tmp_path, tmp_path / "set")


def test_names_of_any_length_and_script(tmp_path):
    """A key that a shard cannot hold is shortened by a digest, so that long names with one beginning stay apart."""
    long = "寿司" * 30
    names = [f"{long}1", f"{long}2", "été/日本 (1)", "été/日本_(1)"]
    for name in names:
        write_jpeg(tmp_path / f"set/images/{name}.jpg", 1, 2)
        write_png(tmp_path / f"set/masks/{name}.png", uint8([0, 1]))
    write_text(tmp_path / "set/classes.txt", "a\nb\n")
    build(tmp_path, tmp_path / "set", val_fraction=0.0)
    samples = read_split(tmp_path / "out", "train")
    assert sorted(meta["image"] for _, _, meta in samples.values()) == sorted(f"images/{name}.jpg" for name in names)
    assert max(len(key.encode()) for key in samples) <= MAX_KEY_BYTES


def test_blanks_at_the_ends_of_names_are_no_part_of_them(tmp_path):
    """ADE20K's table has "bed "; a name that is empty is ignored, and one that comes twice is refused."""
    write_text(tmp_path / "n.csv", 'id,name\n0,"bed "\n1, sky\n2,\n')
    assert read_names(tmp_path / "n.csv") == {0: "bed", 1: "sky", 2: ""}
    write_text(tmp_path / "n.txt", "bed \nbed\n")
    with pytest.raises(DataError, match="has the name 'bed' twice"):
        read_names(tmp_path / "n.txt")


def test_what_a_failed_build_keeps_and_asks_for(tmp_path):
    masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 9, 1])).save, ["a", "b"])
    with pytest.raises(DataError, match=r"masks/a.png: mask has id 9") as caught:
        build(tmp_path, tmp_path / "set")
    assert "the same command continues from there once that is corrected" in caught.value.__notes__[0]


def test_masks_of_floats_and_jpeg_under_the_name_of_a_png(tmp_path):
    write_jpeg(tmp_path / "set/images/a.jpg", 1, 4)
    write_text(tmp_path / "set/classes.txt", "a\nb\nc\n")
    (tmp_path / "set/masks").mkdir()
    Image.fromarray(np.array([[0, 1, 2, 1]], np.float32)).save(tmp_path / "set/masks/a.tif")
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"images_a": [[0, 1, 2, 1]]}
    Image.fromarray(np.array([[0, 1, 2, 0.5]], np.float32)).save(tmp_path / "set/masks/a.tif")
    with pytest.raises(DataError, match="mask has fractions: expected whole ids"):
        build(tmp_path, tmp_path / "set")
    (tmp_path / "set/masks/a.tif").unlink()
    Image.fromarray(uint8([0, 1, 2, 1])).save(tmp_path / "set/masks/a.png", "JPEG")
    with pytest.raises(DataError, match=r"a.png is not a mask, whatever its suffix: expected a file of PNG"):
        build(tmp_path, tmp_path / "set")


@pytest.mark.parametrize("text", ["sky,0\ntree,7\n", "sky;0\ntree;7\n", "sky\t0\ntree\t7\n"])
def test_tables_with_ids_behind_the_names(tmp_path, text):
    write_text(tmp_path / "n.txt", text)
    assert read_names(tmp_path / "n.txt") == {0: "sky", 7: "tree"}


def test_numbers_behind_names_that_may_be_ids(tmp_path):
    write_text(tmp_path / "n.txt", "sky 0\ntree 7\n")
    with pytest.raises(DataError, match="a number that is the id comes first, or with a comma between"):
        read_names(tmp_path / "n.txt")
    for text in ("digit 0\ndigit 7\n", "sky 0\ntree 1\n"):  # names that end in numbers
        write_text(tmp_path / "n.txt", text)
        assert list(read_names(tmp_path / "n.txt").values()) == text.strip().split("\n")


def test_images_without_an_annotation_are_counted(tmp_path):
    coco(tmp_path / "set", ["train/a.jpg", "train/b.jpg"], [(0, 1, LEFT), (0, 2, RIGHT)])
    build(tmp_path, tmp_path / "set")
    assert read_info(tmp_path / "out").report["images_without_annotation"] == 1
