"""What datumaro writes is read from its own json, and asked about or refused where it does not tell what a value means."""

import numpy as np
import pycocotools.mask
import pytest
from exports import BOTH, LEFT, X, build, flat, masks_of
from trees import uint8, write_jpeg, write_json, write_png, write_text

from kiloseg.storage.errors import DataError


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
