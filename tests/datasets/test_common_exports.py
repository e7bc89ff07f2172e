"""Exports that are common and were once refused or read wrongly without a word, beyond those of the other files."""

import json

import numpy as np
import pytest
from exports import BOTH, LEFT, RIGHT, build, flat, masks_of
from PIL import Image
from trees import uint8, write_jpeg, write_json, write_png, write_text

from common.class_names import read_names
from folders.lists import Ends
from kiloseg.storage.errors import DataError

SHAPES = ((1, [[0, 0, 3, 0, 3, 4, 0, 4]]), (2, [[3, 0, 6, 0, 6, 4, 3, 4]]))


def coco(root, file_name="a.jpg", shapes=SHAPES, categories=((1, "cat"), (2, "dog"))):
    content = {
        "images": [{"id": 1, "file_name": file_name, "height": 4, "width": 6}],
        "annotations": [{"image_id": 1, "category_id": category, "segmentation": shape} for category, shape in shapes],
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    write_json(root / "i.json", content)


# COCO


@pytest.mark.parametrize(
    ("there", "listed"), [("a.JPG", "a.jpg"), ("a b.jpg", "a%20b.jpg"), ("x/A.jpg", "C:\\me\\a.jpg")]
)
def test_names_in_another_case_or_encoded(tmp_path, there, listed):
    write_jpeg(tmp_path / "set" / there, 4, 6)
    coco(tmp_path / "set", listed)
    build(tmp_path, tmp_path / "set")
    assert list(masks_of(tmp_path).values()) == [BOTH]


def test_shares_where_pixels_are_expected_are_refused(tmp_path):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    coco(tmp_path / "set", shapes=((1, [[0, 0, 0.5, 0, 0.5, 1, 0, 1]]), (2, [[0.5, 0, 1, 0, 1, 1]])))
    with pytest.raises(DataError, match="from 0 to 1, as shares of the image's size: expected pixels"):
        build(tmp_path, tmp_path / "set")


def test_the_files_own_background_is_the_background(tmp_path):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    coco(tmp_path / "set", shapes=((2, [flat(LEFT)]),), categories=((2, "cat"), (7, "background"), (9, "dog")))
    info = build(tmp_path, tmp_path / "set", unlabeled="background")
    assert info.classes == ["background", "cat", "dog"] and info.background == 0
    assert list(masks_of(tmp_path).values()) == [[[1, 1, 1, 0, 0, 0]] * 4]


def test_images_that_no_annotation_lists_are_counted(tmp_path, capsys):
    for name in "abc":
        write_jpeg(tmp_path / f"set/{name}.jpg", 4, 6)
    coco(tmp_path / "set")
    build(tmp_path, tmp_path / "set")
    assert "left out: 2 images without annotations" in capsys.readouterr().out


def test_images_alone_are_refused(tmp_path):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    coco(tmp_path / "set", shapes=())
    with pytest.raises(DataError, match="has 1 images and no annotation of any"):
        build(tmp_path, tmp_path / "set")


def test_how_images_are_divided_is_said(tmp_path, capsys):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    coco(tmp_path / "set")
    build(tmp_path, tmp_path / "set")
    assert "no folder or list tells train from val: a share of 0.1 of 1 images is set aside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ignore_id": 3}, "--ignore-id means nothing for COCO json"),
        ({"reduce_zero_label": True}, "--reduce-zero-label means nothing"),
        ({"columns": ("a", "b")}, "--columns means nothing"),
        ({"label_field": "gt"}, "--label-field means nothing"),
        ({"annotator": "last"}, "--annotator means nothing"),
        ({"region_label": "last"}, "--region-label means nothing"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(tmp_path, flags, message):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    coco(tmp_path / "set")
    with pytest.raises(DataError, match=message):
        build(tmp_path, tmp_path / "set", **flags)


def test_flags_for_annotations_are_refused_for_masks(tmp_path):
    masked(tmp_path / "set")
    for flags in ({"overlap": "last"}, {"unlabeled": "background"}):
        with pytest.raises(DataError, match=r"--(overlap|unlabeled) means nothing for 1 images with masks"):
            build(tmp_path, tmp_path / "set", **flags)


# CVAT


def test_a_subset_that_is_no_split_beside_one_that_is_asks(tmp_path):
    root = tmp_path / "set"
    xml = "<?xml version='1.0'?>\n<annotations>"
    for name, subset in (("a", "Train"), ("b", "default")):
        write_jpeg(root / f"images/{name}.jpg", 4, 6)
        xml += f'<image id="0" name="{name}.jpg" subset="{subset}" width="6" height="4">'
        xml += '<polygon label="cat" points="0,0;3,0;3,4;0,4"/><polygon label="dog" points="3,0;6,0;6,4;3,4"/></image>'
    write_text(root / "annotations.xml", xml + "</annotations>")
    with pytest.raises(DataError, match=r"nothing tells which split images/b.jpg and 0 other images are"):
        build(tmp_path, root)
    build(tmp_path, root, splits=("default=val",))
    assert masks_of(tmp_path, "val") == {"images_b": BOTH}
    assert list(build(tmp_path, root, splits=("default=none",)).splits) == ["train"]


def test_a_file_for_each_split_of_cvat(tmp_path):
    root = tmp_path / "set"
    for name in ("train", "val"):
        write_jpeg(root / f"images/{name}a.jpg", 4, 6)
        shape = '<polygon label="cat" points="0,0;3,0;3,4;0,4"/><polygon label="dog" points="3,0;6,0;6,4;3,4"/>'
        image = f'<image id="0" name="{name}a.jpg" width="6" height="4">{shape}</image>'
        write_text(root / f"{name}.xml", f"<?xml version='1.0'?>\n<annotations>{image}</annotations>")
    build(tmp_path, root)
    assert masks_of(tmp_path) == {"images_traina": BOTH} and masks_of(tmp_path, "val") == {"images_vala": BOTH}


# YOLO


def yolo(root, line="0 0 0 .5 0 .5 1 0 1\n1 .5 0 1 0 1 1 .5 1\n", folders=("images/train", "images/val"), yaml=None):
    for place in folders:
        write_jpeg(root / place / f"{place[-3:]}.jpg", 4, 6)
        write_text(root / place.replace("images", "labels") / f"{place[-3:]}.txt", line)
    write_text(root / "data.yaml", yaml or f"train: {folders[0]}\nval: {folders[-1]}\nnames: [cat, dog]\n")


def test_the_splits_of_data_yaml(tmp_path, capsys):
    root = tmp_path / "set"
    yolo(
        root,
        folders=("images/old", "images/new"),
        yaml="train: ../images/new\nval: /home/me/set/images/old\nnames: [cat, dog]\n",
    )
    build(tmp_path, root)
    assert set(masks_of(tmp_path)) == {"images_new_new"} and set(masks_of(tmp_path, "val")) == {"images_old_old"}
    write_text(root / "lists/t.txt", "./images/old/old.jpg\n")
    write_text(root / "data.yaml", "train: lists/t.txt\nval: images/old\nnames: [cat, dog]\n")
    assert list(build(tmp_path, root).splits) == ["train"]
    printed = capsys.readouterr().out
    assert "val has the images of another split" in printed and "1 images that data.yaml does not list" in printed
    write_text(root / "lists/t.txt", "images/old/gone.jpg\n")
    with pytest.raises(DataError, match=r"lists 'images/old/gone.jpg', which is not an image here"):
        build(tmp_path, root)


def test_the_lists_of_darknet(tmp_path):
    root = tmp_path / "set"
    for name in "abc":
        write_jpeg(root / f"obj_train_data/{name}.jpg", 4, 6)
        write_text(root / f"obj_train_data/{name}.txt", "0 0 0 .5 0 .5 1 0 1\n1 .5 0 1 0 1 1 .5 1\n")
    write_text(root / "obj.names", "cat\ndog\n")
    write_text(root / "obj.data", "classes = 2\ntrain = data/train.txt\nvalid = data/val.txt\nnames = data/obj.names\n")
    write_text(root / "train.txt", "data/obj_train_data/a.jpg\n")
    write_text(root / "val.txt", "data/obj_train_data/b.jpg\ndata/obj_train_data/c.jpg\n")
    build(tmp_path, root)
    assert masks_of(tmp_path) == {"obj_train_data_a": BOTH} and len(masks_of(tmp_path, "val")) == 2


def test_class_ids_with_a_point_and_labels_without_an_image(tmp_path, capsys):
    root = tmp_path / "set"
    yolo(root, "0.0 0 0 .5 0 .5 1 0 1\n1.0 .5 0 1 0 1 1 .5 1\n")
    write_text(root / "labels/train/gone.txt", "0 0 0 .5 0 .5 1 0 1\n")
    build(tmp_path, root)
    assert list(masks_of(tmp_path).values()) == [BOTH]
    assert "left out: 1 txt files without an image" in capsys.readouterr().out
    yolo(root, "0.5 0 0 .5 0 .5 1 0 1\n")
    with pytest.raises(DataError, match=r"line 1 cannot be read \(class 0.5\)"):
        build(tmp_path, root)


# labelme and Label Studio


@pytest.mark.parametrize("kind", ["oriented_rectangle", "rotation", "rectangle"])
def test_boxes_of_four_corners(tmp_path, kind):
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    shapes = [
        {"label": label, "points": points, "shape_type": kind} for label, points in (("cat", LEFT), ("dog", RIGHT))
    ]
    content = {"version": "6", "shapes": shapes, "imagePath": "a.jpg", "imageHeight": 4, "imageWidth": 6}
    write_json(tmp_path / "set/a.json", content)
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"a": BOTH}


def label_studio(root, *results, image="/data/upload/1/0a1b2c3d-a.jpg"):
    size = {"original_width": 6, "original_height": 4}
    task = {"id": 1, "data": {"image": image}, "annotations": [{"result": [{**size, **result} for result in results]}]}
    write_json(root / "p.json", [task])


def polygon(label, points):
    shares = [[x / 6 * 100, y / 4 * 100] for x, y in points]
    return {"type": "polygonlabels", "value": {"points": shares, "polygonlabels": [label]}}


def test_label_studio_finds_images_by_folder(tmp_path):
    """Two images have one name: the folder tells which one is meant, and without it neither is taken."""
    for name in "xy":
        write_jpeg(tmp_path / f"set/{name}/a.jpg", 4, 6)
    label_studio(tmp_path / "set", polygon("cat", LEFT), polygon("dog", RIGHT), image="/data/local-files/?d=y/a.jpg")
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"y_a": BOTH}
    label_studio(tmp_path / "set", polygon("cat", LEFT), polygon("dog", RIGHT))
    with pytest.raises(DataError, match="whose image is missing or ambiguous"):
        build(tmp_path, tmp_path / "set")


def test_label_studio_turned(tmp_path):
    """A rectangle turned by 90 degrees around its left upper corner; an image that was turned is refused."""
    write_jpeg(tmp_path / "set/a.jpg", 4, 6)
    value = {"x": 50, "y": 0, "width": 100 * 4 / 6, "height": 75, "rotation": 90, "rectanglelabels": ["cat"]}
    label_studio(tmp_path / "set", {"type": "rectanglelabels", "value": value}, polygon("dog", RIGHT))
    build(tmp_path, tmp_path / "set")
    assert masks_of(tmp_path) == {"a": BOTH}
    label_studio(tmp_path / "set", polygon("cat", LEFT) | {"image_rotation": 90}, polygon("dog", RIGHT))
    with pytest.raises(DataError, match="task 1 was labeled on an image that was turned"):
        build(tmp_path, tmp_path / "set")


# Masks and tables


def masked(root, mask=((0, 1, 2, 1),), suffix="png", **options):
    write_text(root / "classes.txt", "sky\ntree\nroad\n")
    write_jpeg(root / "images/a.jpg", len(mask), len(mask[0]))
    (root / "masks").mkdir(parents=True, exist_ok=True)
    Image.fromarray(uint8(*mask)).save(root / f"masks/a.{suffix}", **options)


def test_masks_as_jpeg_are_refused(tmp_path):
    masked(tmp_path / "set", suffix="jpg")
    with pytest.raises(
        DataError, match=r"masks/a.jpg and 0 more in a folder of masks are of a format that changes ids"
    ):
        build(tmp_path, tmp_path / "set")


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_masks_of_several_pictures_are_refused(tmp_path, suffix):
    masked(tmp_path / "set", suffix=suffix, save_all=True, append_images=[Image.fromarray(uint8([2, 2, 2, 2]))])
    with pytest.raises(DataError, match=rf"masks/a.{suffix} holds 2 images: expected one mask"):
        build(tmp_path, tmp_path / "set")


def test_comments_in_a_list_of_names_are_no_classes(tmp_path):
    write_text(tmp_path / "n.txt", "# my classes\nsky\ntree\n")
    assert read_names(tmp_path / "n.txt") == {0: "sky", 1: "tree"}


def test_a_gap_in_a_list_of_names_is_refused(tmp_path):
    write_text(tmp_path / "n.txt", "sky\ntree\n\nroad\n\n")
    with pytest.raises(DataError, match="line 3 is empty or a comment; an id is the number of its line"):
        read_names(tmp_path / "n.txt")
    write_text(tmp_path / "n.txt", "0 sky\n1 tree\n\n2 road\n")
    assert read_names(tmp_path / "n.txt") == {0: "sky", 1: "tree", 2: "road"}


@pytest.mark.parametrize("text", ["names:\n  0: sky\n  1: 12\n", "names: [yes, no]\n", "names:\n  0: on\n  1: off\n"])
def test_names_that_yaml_takes_for_something_else_are_refused(tmp_path, text):
    write_text(tmp_path / "d.yaml", text)
    with pytest.raises(DataError, match="is not a table of class names"):
        read_names(tmp_path / "d.yaml")


def test_a_reading_that_cannot_be_does_not_stop_another(tmp_path, capsys):
    """An unrelated folder of incomplete masks beside COCO json."""
    root = tmp_path / "set"
    for name in "ab":
        write_jpeg(root / f"images/{name}.jpg", 4, 6)
    write_png(root / "masks/a.png", np.zeros((4, 6), np.uint8))
    coco(root)
    build(tmp_path, root)
    assert masks_of(tmp_path) == {"images_a": BOTH} and "cannot be read as masks" in capsys.readouterr().out


def test_the_longest_end_finds_a_file():
    ends = Ends(["x/a.jpg", "y/a.jpg", "y/b.png"])
    assert ends.find("/home/me/y/a.jpg") == ends.find("..\\y\\a") == "y/a.jpg"
    assert ends.find("a.jpg") is None and ends.find("b") == "y/b.png" and ends.find("c") is None


def test_a_json_of_captions_beside_instances_is_said(tmp_path, capsys):
    root = tmp_path / "set"
    write_jpeg(root / "images/a.jpg", 4, 6)
    coco(root / "annotations")
    (root / "annotations/i.json").rename(root / "annotations/instances_train.json")
    content = json.loads((root / "annotations/instances_train.json").read_text())
    write_json(root / "annotations/stuff_train.json", content)
    build(tmp_path, root)
    assert "instances_train.json is used, annotations/stuff_train.json are not" in capsys.readouterr().out
