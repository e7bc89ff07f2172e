"""Data sets of Ultralytics are read by their data.yaml, polygons and masks alike, and other yaml files are left alone."""

import pytest
from exports import BOTH, LEFT, RIGHT, X, build, coco, masks_of
from trees import uint8, write_jpeg, write_png, write_text

from kiloseg.storage.errors import DataError


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
