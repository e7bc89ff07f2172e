"""Splits and keys of samples come from the names of files and folders."""

import pytest
from exports import LEFT, RIGHT, build, coco, masks_of
from trees import read_split, uint8, write_jpeg, write_png, write_text

from kiloseg.data.writing.shard import MAX_KEY_BYTES
from kiloseg.storage.errors import DataError


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
