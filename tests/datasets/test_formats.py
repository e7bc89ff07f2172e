"""What annotation tools export, on tiny trees in the exact form of each, built by one command: python datasets/folder.py PATH."""

import base64
import io
import json
import shutil
import zlib

import numpy as np
import pytest
from damage import built_again_as_verify_says
from exports import build, flat
from PIL import Image
from trees import IGNORE, read_split, uint8, write_jpeg, write_json, write_png, write_text

from folders import labelstudio
from kiloseg.data.description import read_info
from kiloseg.data.index import read_index
from kiloseg.storage.errors import DataError

X = IGNORE


def split(tmp_path, name="train"):
    return {key: sample[1] for key, sample in read_split(tmp_path / "out", name).items()}


def square(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


CAT_AND_DOG = [[X, 0, 0, X, X, X], [X, 0, 1, 1, X, X], [X, X, 1, 1, X, X], [X] * 6]
"""A cat at columns and rows 1 to 2 from the top, and on it a dog, drawn later: 2 of its 4 pixels are the cat's too."""
CAT, DOG = square(1, 0, 3, 2), square(2, 1, 4, 3)


# labelme


def labelme(name, shapes, **changes):
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {
                "label": label,
                "points": points,
                "group_id": None,
                "description": "",
                "shape_type": kind,
                "flags": {},
                **more,
            }
            for label, points, kind, more in shapes
        ],
        "imagePath": name,
        "imageData": None,
        "imageHeight": 4,
        "imageWidth": 6,
        **changes,
    }


def test_labelme(tmp_path, capsys):
    root = tmp_path / "photos"
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_jpeg(root / name, 4, 6)
    write_json(root / "a.json", labelme("a.jpg", [("cat", CAT, "polygon", {}), ("dog", DOG, "polygon", {})]))
    png = io.BytesIO()
    Image.fromarray(uint8([1, 0], [1, 1]) > 0).save(png, "PNG")
    mask = {"mask": base64.b64encode(png.getvalue()).decode()}
    shapes = [
        ("dog", [[4, 3], [2, 1]], "rectangle", {}),
        ("cat", [[0, 2], [1, 3]], "mask", mask),
        ("cat", [[1, 1]], "point", {}),
    ]
    write_json(root / "b.json", labelme("..\\photos\\b.jpg", shapes))
    info = build(tmp_path, root, val_fraction=0)
    assert info.classes == ["cat", "dog"]
    masks = split(tmp_path)
    assert masks == {
        "a": CAT_AND_DOG,
        "b": [[X] * 6, [X, X, 1, 1, X, X], [0, X, 1, 1, X, X], [0, 0, X, X, X, X]],
    }
    printed = capsys.readouterr().out
    assert f"{root} is read as labelme, 2 json files (--format labelme --overlap last --unlabeled ignore)" in printed
    assert info.report["left_out"] == {"images without a json file": 1} and info.report["regions_without_shape"] == 1


def test_labelme_without_its_image(tmp_path):
    write_jpeg(tmp_path / "p/a.jpg", 4, 6)
    write_json(tmp_path / "p/b.json", labelme("b.jpg", []))
    with pytest.raises(DataError, match=r"b.json: no image 'b.jpg' beside it"):
        build(tmp_path, tmp_path / "p")


# CVAT


def cvat_xml(shapes):
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta><job/></meta>\n'
        f'  <image id="0" name="a.jpg" width="6" height="4">\n{shapes}  </image>\n</annotations>\n'
    )


def test_cvat_for_images(tmp_path):
    root = tmp_path / "export"
    write_jpeg(root / "images/a.jpg", 4, 6)
    write_text(
        root / "annotations.xml",
        cvat_xml(
            '    <polygon label="dog" source="manual" occluded="0" points="2.00,1.00;4.00,1.00;4.00,3.00;2.00,3.00" z_order="1">'
            "</polygon>\n"
            '    <box label="cat" source="manual" occluded="0" xtl="1.0" ytl="0.0" xbr="3.0" ybr="2.0" z_order="0">'
            '<attribute name="x">y</attribute></box>\n'
            '    <mask label="bird" source="manual" occluded="0" rle="1, 1, 2" left="4" top="2" width="2" height="2" z_order="2">'
            "</mask>\n"
            '    <points label="cat" source="manual" occluded="0" points="1,1" z_order="9"></points>\n'
            '    <tag label="cat" source="manual"></tag>\n'
        ),
    )
    info = build(tmp_path, root)
    assert info.classes == ["bird", "cat", "dog"] and info.report["regions_without_shape"] == 1
    assert split(tmp_path)["images_a"] == [[X, 1, 1, X, X, X], [X, 1, 2, 2, X, X], [X, X, 2, 2, X, 0], [X] * 6]


def test_cvat_masks_and_tracks_that_cannot_be(tmp_path):
    root = tmp_path / "export"
    write_jpeg(root / "images/a.jpg", 4, 6)
    for shape, message in (
        ('<mask label="a" rle="1, 1" left="0" top="0" width="2" height="2"/>', "runs of 2 pixels in a mask of 2 x 2"),
        (
            '<mask label="a" rle="900000000000" left="0" top="0" width="9" height="9"/>',
            "a mask of 9 x 9 in an image of 6 x 4",
        ),
        ('<polygon label="a" points="1,1;x,2;3,3"/>', "could not convert"),
    ):
        write_text(root / "annotations.xml", cvat_xml(shape))
        with pytest.raises(DataError, match=message):
            build(tmp_path, root)
    write_text(root / "annotations.xml", cvat_xml("").replace("<image", '<track id="0" label="a"></track><image'))
    with pytest.raises(DataError, match="tracks of a video"):
        build(tmp_path, root)
    write_text(root / "annotations.xml", "<!DOCTYPE a [<!ENTITY b 'c'>]>" + cvat_xml("").partition("\n")[2])
    with pytest.raises(DataError, match="no known format"):
        build(tmp_path, root)


def test_cvat_segmentation_mask(tmp_path):
    root = tmp_path / "export"
    write_text(
        root / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:36,179,83::\n"
    )
    for name in ("a", "b"):
        write_jpeg(root / f"JPEGImages/{name}.jpg", 1, 3)
        write_png(root / f"SegmentationObject/{name}.png", np.zeros((1, 3, 3), np.uint8))
    colors = np.array([[[36, 179, 83], [0, 0, 0], [250, 50, 83]]], np.uint8)
    write_png(root / "SegmentationClass/a.png", colors)
    Image.fromarray(colors).quantize(3).save(root / "SegmentationClass/b.png")
    write_text(root / "ImageSets/Segmentation/train.txt", "a\n")
    write_text(root / "ImageSets/Segmentation/val.txt", "b\n")
    info = build(tmp_path, root)
    assert info.classes == ["background", "cat", "dog"] and info.background == 0
    assert [list(mask.values()) for mask in (split(tmp_path), split(tmp_path, "val"))] == [[[[2, 0, 1]]], [[[2, 0, 1]]]]
    write_png(root / "SegmentationClass/a.png", colors + uint8([[[1, 0, 0]]])[0])
    with pytest.raises(
        DataError, match=r"a.png: mask has color 37,179,83 in 3 pixels, which .*labelmap.txt does not have"
    ):
        build(tmp_path, root)


# Roboflow


def test_roboflow_masks(tmp_path, capsys):
    root = tmp_path / "export"
    for folder_name in ("train", "valid", "test"):
        name = f"IMG_1_jpg.rf.{folder_name}"
        write_jpeg(root / folder_name / f"{name}.jpg", 1, 3)
        write_png(root / folder_name / f"{name}_mask.png", uint8([0, 2, 1]))
        write_text(root / folder_name / "_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    info = build(tmp_path, root)
    assert info.classes == ["background", "cat", "dog"] and info.background == 0
    assert [list(mask.values()) for mask in (split(tmp_path), split(tmp_path, "val"))] == [[[[0, 2, 1]]], [[[0, 2, 1]]]]
    assert "1 images of split test are left out" in capsys.readouterr().out
    write_text(root / "valid/_classes.csv", "Pixel Value, Class\n0, background\n1, dog\n2, cat\n")
    with pytest.raises(DataError, match=r"_classes.csv differ: expected the same classes in all splits"):
        build(tmp_path, root)


def coco(images, annotations, categories):
    return {
        "info": {"year": "2024"},
        "licenses": [],
        "categories": [{"id": n, "name": name, "supercategory": above} for n, name, above in categories],
        "images": images,
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": category,
                "bbox": [0, 0, 1, 1],
                "segmentation": shape,
                "iscrowd": 0,
            }
            for n, (image, category, shape) in enumerate(annotations)
        ],
    }


ROBOFLOW = [(0, "dog", "none"), (1, "cat", "dog"), (2, "dog", "dog")]
"""The first is the super-category, which no annotation has; its name is that of a class."""


def test_roboflow_coco(tmp_path):
    root = tmp_path / "export"
    for folder_name in ("train", "valid", "test"):
        name = f"a_jpg.rf.{folder_name}.jpg"
        write_jpeg(root / folder_name / name, 4, 6)
        image = {"id": 0, "license": 1, "file_name": name, "height": 4, "width": 6, "date_captured": "2024"}
        content = coco([image], [(0, 1, [flat(CAT)]), (0, 2, [flat(DOG)])], ROBOFLOW)
        write_json(root / folder_name / "_annotations.coco.json", content)
    info = build(tmp_path, root)
    assert info.classes == ["cat", "dog"] and list(info.splits) == ["train", "val"]
    assert list(split(tmp_path, "val").values()) == [CAT_AND_DOG]


# COCO as tools write it


def test_coco_archive_layout(tmp_path):
    root = tmp_path / "coco"
    for folder_name in ("train2017", "val2017"):
        write_jpeg(root / folder_name / "1.jpg", 4, 6)
        image = {"id": 1, "file_name": "1.jpg", "height": 4, "width": 6}
        shapes = [(1, 1, [flat(CAT)]), (1, 2, [flat(DOG)])]
        write_json(root / f"annotations/instances_{folder_name}.json", coco([image], shapes, ROBOFLOW))
        write_json(
            root / f"annotations/captions_{folder_name}.json", {"images": [image], "annotations": [{"caption": "a"}]}
        )
    build(tmp_path, root)
    assert split(tmp_path) == {"train2017_1": CAT_AND_DOG} and split(tmp_path, "val") == {"val2017_1": CAT_AND_DOG}


@pytest.mark.parametrize(
    "image",
    [
        {"id": "1", "file_name": "a.jpg", "height": "4", "width": "6"},
        {"id": 1, "file_name": "a.jpg", "height": 4.0, "width": 6.0, "coco_url": None, "license": None},
        {"id": 1, "file_name": "a.jpg", "height": None, "width": None},
        {"id": 1, "file_name": "a.jpg"},
        {"id": 1, "file_name": "C:\\data\\images\\a.jpg", "height": 4, "width": 6},
        {"id": 1, "file_name": "..\\..\\media\\upload\\1\\a.jpg", "height": 4, "width": 6},
        {"id": 1, "file_name": "images/a.jpg", "height": 4, "width": 6},
        {"id": 1, "coco_url": "http://images.example/images/a.jpg", "height": 4, "width": 6},
        {"id": 1, "file_name": "a.jpg", "height": 4, "width": 6, "score": float("nan")},
    ],
    ids=["text", "points", "null", "no sizes", "Windows", "upwards", "folder", "URL alone", "NaN"],
)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_coco_leniencies(tmp_path, image, mark):
    root = tmp_path / "export"
    write_jpeg(root / "images/a.jpg", 4, 6)
    content = coco([image], [(image["id"], 1, [flat(CAT)]), (image["id"], "2", [flat(DOG)])], ROBOFLOW)
    write_text(root / "result.json", mark + json.dumps(content))
    build(tmp_path, root)
    assert list(split(tmp_path).values()) == [CAT_AND_DOG]


# YOLO


def test_yolo_polygons(tmp_path):
    root = tmp_path / "yolo"
    write_text(root / "data.yaml", "path: ../yolo\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n")
    shares = " ".join(f"{x / 6:.6f} {y / 4:.6f}" for x, y in CAT), " ".join(f"{x / 6:.6f} {y / 4:.6f}" for x, y in DOG)
    for name in ("train", "val"):
        write_jpeg(root / f"images/{name}/a.jpg", 4, 6)
        write_text(root / f"labels/{name}/a.txt", f"0 {shares[0]}\n1 {shares[1]}\n1 0.5 0.5 0.1 0.1\n")
    write_jpeg(root / "images/train/empty.jpg", 4, 6)
    info = build(tmp_path, root)
    assert info.classes == ["cat", "dog"] and info.report["regions_without_shape"] == 2
    assert split(tmp_path) == {"images_train_a": CAT_AND_DOG, "images_train_empty": [[X] * 6] * 4}
    write_text(root / "labels/train/a.txt", "0 10 20 30 40 50 60\n")
    with pytest.raises(DataError, match=r"a.txt: line 1 cannot be read \(coordinates that are not fractions"):
        build(tmp_path, root)


# Supervisely


def bitmap(rows):
    """As Supervisely packs a bitmap: an RGBA PNG, compressed, in base64."""
    rgba = np.repeat(uint8(*rows)[..., None] * 255, 4, axis=2)
    png = io.BytesIO()
    Image.fromarray(rgba).save(png, "PNG")
    return base64.b64encode(zlib.compress(png.getvalue())).decode()


def test_supervisely(tmp_path):
    root = tmp_path / "project"
    classes = [
        {"title": "cat", "shape": "polygon", "color": "#F00"},
        {"title": "dog", "shape": "bitmap", "color": "#0F0"},
    ]
    write_json(root / "meta.json", {"classes": classes, "tags": []})
    for name in ("train", "val"):
        write_jpeg(root / name / "img/a.jpg", 4, 6)
        hole = {"exterior": square(0, 0, 6, 4), "interior": [square(1, 1, 5, 3)]}
        objects = [
            {"classTitle": "cat", "geometryType": "polygon", "points": hole},
            {
                "classTitle": "dog",
                "geometryType": "bitmap",
                "bitmap": {"data": bitmap([[0, 1], [1, 1]]), "origin": [4, 2]},
            },
        ]
        content = {"description": "", "tags": [], "size": {"height": 4, "width": 6}, "objects": objects}
        write_json(root / name / "ann/a.jpg.json", content)
    info = build(tmp_path, root)
    assert info.classes == ["cat", "dog"]
    inside = [0, X, X, X, X, 0]
    assert split(tmp_path) == {"train_img_a": [[0] * 6, inside, [*inside[:5], 1], [0, 0, 0, 0, 1, 1]]}


# Label Studio


def packed(values):
    """A brush stroke as Label Studio packs it, by runs of at most 8 and words of 8 bits."""
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    at = 0
    while at < len(values):
        run = 1
        while at + run < len(values) and run < 8 and values[at + run] == values[at]:
            run += 1
        bits += f"1{0:02b}{run - 1:03b}{values[at]:08b}"
        at += run
    bits += "0" * (-len(bits) % 8)
    return [int(bits[place : place + 8], 2) for place in range(0, len(bits), 8)]


def test_label_studio(tmp_path):
    root = tmp_path / "export"
    write_jpeg(root / "a.jpg", 4, 6)
    stroke = np.zeros((4, 6, 4), np.uint8)
    stroke[1:3, 2:4] = 255
    size = {"original_width": 6, "original_height": 4, "to_name": "image", "from_name": "tag"}
    results = [
        {
            **size,
            "type": "polygonlabels",
            "value": {"points": [[x / 6 * 100, y / 4 * 100] for x, y in CAT], "polygonlabels": ["cat"]},
        },
        {
            **size,
            "type": "brushlabels",
            "value": {"format": "rle", "rle": packed(stroke.ravel().tolist()), "brushlabels": ["dog"]},
        },
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    task = {"id": 1, "data": {"image": "/data/upload/1/0a1b2c3d-a.jpg"}, "annotations": [{"id": 1, "result": results}]}
    write_json(root / "project.json", [task])
    info = build(tmp_path, root)
    assert info.classes == ["cat", "dog"] and split(tmp_path) == {"a": CAT_AND_DOG}


def test_a_brush_stroke_of_another_length_is_refused_before_anything_is_allocated():
    with pytest.raises(ValueError, match="a brush stroke of 4294967295 bytes, expected 96"):
        labelstudio.unpack_brush([255] * 40, 96)
    with pytest.raises(ValueError, match="ends too early"):
        labelstudio.unpack_brush(packed([1] * 96)[:12], 96)


# Masks in the layouts of other tools


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("img_dir/{}/a.jpg", "ann_dir/{}/a.png"),
        ("{}/images/a.jpg", "{}/masks/a.png"),
        ("images/{}/a.jpg", "masks/{}/a_mask.png"),
        ("{}/a.jpg", "{}/a_seg.png"),
        ("{}/a.jpg", "{}/a_gt.png"),
        ("images/{}/a.jpg", "annotations/{}/a.tif"),
        ("images/{}/a.jpg", "annotations/{}/a.bmp"),
        ("{}/images/a.jpg", "{}/v2.0/labels/a.png"),
    ],
)
def test_layouts(tmp_path, image, mask):
    root = tmp_path / "set"
    write_text(root / "classes.txt", "sky\ntree\nroad\n")
    for name in ("train", "val"):
        write_jpeg(root / image.format(name), 1, 3)
        path = root / mask.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(uint8([0, 2, 255])).save(path)
    info = build(tmp_path, root)
    assert info.classes == ["sky", "tree", "road"]
    assert [list(split(tmp_path, name).values()) for name in ("train", "val")] == [[[[0, 2, X]]]] * 2


def test_mapillary_vistas(tmp_path):
    root = tmp_path / "vistas"
    labels = [
        {"name": "animal--bird", "readable": "Bird", "color": [165, 42, 42], "evaluate": True, "instances": True},
        {"name": "object--car", "readable": "Car", "color": [0, 0, 142], "evaluate": True, "instances": True},
        {"name": "void--unlabeled", "readable": "Unlabeled", "color": [0, 0, 0], "evaluate": False, "instances": False},
    ]
    write_json(root / "config_v2.0.json", {"labels": labels, "version": "2.0"})
    for name in ("training", "validation"):
        write_jpeg(root / name / "images/a.jpg", 1, 3)
        write_png(root / name / "v2.0/labels/a.png", uint8([0, 1, 2]), palette=True)
        write_png(root / name / "v2.0/instances/a.png", np.array([[0, 256, 512]], np.uint16))
        write_png(root / name / "v1.2/labels/a.png", uint8([2, 2, 2]))
    info = build(tmp_path, root)
    assert info.classes == ["animal--bird", "object--car"]
    assert split(tmp_path) == {"training_images_a": [[0, 1, X]]}


def test_reduce_zero_label(tmp_path):
    root = tmp_path / "set"
    write_text(root / "classes.txt", "wall\nsky\n")
    write_jpeg(root / "images/a.jpg", 1, 4)
    write_png(root / "annotations/a.png", uint8([0, 1, 2, 255]))
    build(tmp_path, root, reduce_zero_label=True)
    assert split(tmp_path) == {"images_a": [[X, 0, 1, X]]}


def test_16_bit_tiff_and_gray_as_rgb(tmp_path):
    root = tmp_path / "set"
    write_json(root / "classes.json", {"0": "a", "300": "b", "7": "c"})
    write_jpeg(root / "images/a.jpg", 1, 3)
    write_jpeg(root / "images/b.jpg", 1, 3)
    (root / "masks").mkdir()
    Image.fromarray(np.array([[0, 300, 65535]], np.uint16)).save(root / "masks/a.tif")
    write_png(root / "masks/b.png", np.repeat(uint8([0, 7, 7])[..., None], 3, axis=2))
    build(tmp_path, root, val_fraction=0)
    assert split(tmp_path) == {"images_a": [[0, 2, X]], "images_b": [[0, 1, 1]]}


# Detection


def test_two_readings_ask(tmp_path):
    root = tmp_path / "set"
    write_jpeg(root / "images/a.jpg", 4, 6)
    write_png(root / "masks/a.png", np.zeros((4, 6), np.uint8))
    write_text(root / "classes.txt", "cat\ndog\n")
    write_json(root / "images/a.json", labelme("a.jpg", [("cat", CAT, "polygon", {}), ("dog", DOG, "polygon", {})]))
    with pytest.raises(DataError, match=r"can be read as labelme or as masks: choose one with --format labelme"):
        build(tmp_path, root)
    build(tmp_path, root, format="masks")
    assert split(tmp_path) == {"images_a": [[0] * 6] * 4}
    build(tmp_path, root, format="labelme")
    assert split(tmp_path) == {"images_a": CAT_AND_DOG}


def test_nothing_that_is_known(tmp_path):
    (tmp_path / "set").mkdir()
    write_jpeg(tmp_path / "set/a.jpg")
    with pytest.raises(DataError, match=r"holds no known format \(coco, panoptic, .*labelme"):
        build(tmp_path, tmp_path / "set")
    with pytest.raises(DataError, match="does not exist: expected a folder or file"):
        build(tmp_path, tmp_path / "none")
    write_png(tmp_path / "set/a_mask.png", np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match=r"no table of class names .*--names"):
        build(tmp_path, tmp_path / "set")


def test_the_command_that_is_recorded_builds_it_again(tmp_path):
    write_jpeg(tmp_path / "my set/a.jpg", 4, 6)
    write_json(tmp_path / "my set/a.json", labelme("a.jpg", [("cat", CAT, "polygon", {}), ("dog", DOG, "polygon", {})]))
    build(tmp_path, tmp_path / "my set", splits=("x=none", "y=val"))
    command = read_info(tmp_path / "out").command
    assert f"'{tmp_path}/my set'" in command and "--splits x=none y=val" in command


def test_damaged_data_set_is_built_again_as_verify_says(tmp_path, capsys):
    write_jpeg(tmp_path / "my set/a.jpg", 4, 6)
    write_json(tmp_path / "my set/a.json", labelme("a.jpg", [("cat", CAT, "polygon", {}), ("dog", DOG, "polygon", {})]))
    build(tmp_path, tmp_path / "my set", splits=("x=none", "y=val"), name="it's mine")
    built_again_as_verify_says(tmp_path / "out", capsys, tmp_path)


def test_annotation_that_is_corrected_costs_only_its_own_shard(tmp_path, capsys):
    """What the message of the failed build says: the same command continues, and writes the shards of changed files again."""
    for name in "abcdef":
        write_jpeg(tmp_path / f"set/{name}.jpg", 4, 6)
        shapes = [("cat", CAT, "polygon", {}), ("dog", DOG, "polygon", {})]
        write_json(tmp_path / f"set/{name}.json", labelme(f"{name}.jpg", shapes))
    options = {"val_fraction": 0.0, "shard_size": 1}
    build(tmp_path, tmp_path / "set", **options)
    keys = [row["key"] for row in read_index(tmp_path / "out", "train").to_pylist()]
    last = tmp_path / f"set/{keys[-1]}.jpg"
    shutil.rmtree(tmp_path / "out")
    whole = last.read_bytes()
    last.write_bytes(whole.removesuffix(b"\xff\xd9")[:-30])
    with pytest.raises(DataError, match=f"{last.name} cannot be decoded") as error:
        build(tmp_path, tmp_path / "set", **options)
    (note,) = error.value.__notes__
    assert (
        note.startswith("5 of 6 shards are finished and kept in")
        and "continues from there once that is corrected" in note
    )
    last.write_bytes(whole)
    other = labelme(f"{keys[0]}.jpg", [("dog", CAT, "polygon", {}), ("cat", DOG, "polygon", {})])
    write_json(tmp_path / f"set/{keys[0]}.json", other)
    capsys.readouterr()
    build(tmp_path, tmp_path / "set", **options)
    assert "4 of 6 shards kept from an earlier run" in capsys.readouterr().out
    fresh = tmp_path / "fresh"
    build(fresh, tmp_path / "set", **options)
    assert read_info(fresh / "out").digest == read_info(tmp_path / "out").digest
