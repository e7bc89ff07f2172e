"""Names of classes come from tables and labels, which ask where they may mean two things."""

import pytest
from exports import LEFT, RIGHT, X, build, masked, masks_of
from PIL import Image
from trees import uint8, write_jpeg, write_json, write_text

from common.class_names import read_names
from kiloseg.storage.errors import DataError


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


def test_blanks_at_the_ends_of_names_are_no_part_of_them(tmp_path):
    """ADE20K's table has "bed "; a name that is empty is ignored, and one that comes twice is refused."""
    write_text(tmp_path / "n.csv", 'id,name\n0,"bed "\n1, sky\n2,\n')
    assert read_names(tmp_path / "n.csv") == {0: "bed", 1: "sky", 2: ""}
    write_text(tmp_path / "n.txt", "bed \nbed\n")
    with pytest.raises(DataError, match="has the name 'bed' twice"):
        read_names(tmp_path / "n.txt")


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
