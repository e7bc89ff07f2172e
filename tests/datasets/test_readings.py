"""What a folder is read as is said, and what is left out or looks wrong in it is counted."""

import pytest
from exports import LEFT, RIGHT, build, coco, masked
from PIL import Image
from trees import uint8, write_jpeg, write_png

from kiloseg.data.description import read_info
from kiloseg.storage.errors import DataError


def test_the_line_says_what_a_reading_amounts_to(tmp_path, capsys):
    masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 2, 1])).save, ["a", "b", "c"])
    build(tmp_path, tmp_path / "set")
    table = tmp_path / "set/classes.json"
    printed = capsys.readouterr().out
    assert f"is read as 1 images with masks, names from classes.json (--format masks --names {table})" in printed
    coco(tmp_path / "other", ["a.jpg"], [(0, 1, LEFT), (0, 2, RIGHT)])
    build(tmp_path, tmp_path / "other", unlabeled="background")
    assert "(--format coco --overlap smallest --unlabeled background)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "warned"), [(LEFT, True), ([*LEFT, LEFT[0]], True), ([[0, 0], [3, 1], [3, 4], [0, 4]], False)]
)
def test_regions_that_are_all_boxes_are_warned_of(tmp_path, capsys, shape, warned):
    """Converters write the corners of a box as a polygon: the json looks as if it held shapes."""
    coco(tmp_path / "set", ["a.jpg"], [(0, 1, shape), (0, 2, RIGHT)])
    build(tmp_path, tmp_path / "set")
    assert ("all 2 regions are upright boxes" in capsys.readouterr().out) == warned


def test_regions_outside_of_their_image_are_counted(tmp_path, capsys):
    """As after resizing images without their annotations."""
    outside = [[x + 6, y] for x, y in LEFT]
    coco(tmp_path / "set", ["a.jpg"], [(0, 1, LEFT), (0, 2, outside), (0, 2, RIGHT)])
    info = build(tmp_path, tmp_path / "set")
    assert info.report["regions_without_pixel"] == 1 and info.report["objects_hidden"] == 0
    assert "warning: 1 of 3 regions have no pixel: they lie outside of their images" in capsys.readouterr().out


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


def test_images_that_no_annotation_lists_are_counted_with_images_and_annotations(tmp_path, capsys):
    coco(tmp_path / "set", ["a.jpg"], [(0, 1, LEFT), (0, 2, RIGHT)])
    write_jpeg(tmp_path / "set/b.jpg")
    build(tmp_path, None, images=tmp_path / "set", annotations=tmp_path / "set/i.json")
    assert "left out: 1 images without annotations or of a split that is not built" in capsys.readouterr().out


def test_images_without_an_annotation_are_counted(tmp_path):
    coco(tmp_path / "set", ["train/a.jpg", "train/b.jpg"], [(0, 1, LEFT), (0, 2, RIGHT)])
    build(tmp_path, tmp_path / "set")
    assert read_info(tmp_path / "out").report["images_without_annotation"] == 1


def test_what_a_failed_build_keeps_and_asks_for(tmp_path):
    masked(tmp_path / "set", Image.fromarray(uint8([0, 1, 9, 1])).save, ["a", "b"])
    with pytest.raises(DataError, match=r"masks/a.png: mask has id 9") as caught:
        build(tmp_path, tmp_path / "set")
    assert "the same command continues from there once that is corrected" in caught.value.__notes__[0]
