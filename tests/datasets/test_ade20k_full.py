"""The full ADE20K on a tiny tree in the layout of ADE20K_2021_17_01."""

import json
from collections import Counter

import numpy as np
import pytest
from damage import built_again_as_verify_says
from trees import IGNORE, read_split, write_jpeg, write_png

import ade20k_full
from common.label_table import class_names, read_table
from kiloseg.storage.errors import DataError

X = IGNORE
PERSON = "person, individual, someone, somebody, mortal, soul"


def write_image(root, folder, name, ids, objects, encoding="utf-8"):
    base = root / "ADE20K_2021_17_01/images/ADE" / folder / "urban/street" / name
    write_jpeg(base.with_suffix(".jpg"), 1, len(ids))
    pixels = np.array([[[i // 256 * 10 + 3, i % 256, 7] for i in ids]], np.uint8)  # red and blue hold instances too
    write_png(base.with_name(f"{name}_seg.png"), pixels)
    write_png(base.with_name(f"{name}_parts_1.png"), pixels)
    write_png(base / "instance_000_ADE.png", pixels[..., 0])
    found = [
        {"id": n, "name": text, "name_ndx": i, "hypernym": [], "raw_name": text, "parts": {}}
        for n, (i, text) in enumerate(objects)
    ]
    content = json.dumps({"annotation": {"filename": f"{name}.jpg", "object": found}}, ensure_ascii=False)
    base.with_suffix(".json").write_bytes(content.encode(encoding))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "archives"
    objects = [(2978, "wall"), (1831, PERSON), (3000, "no class of the benchmark "), (7, "caf\u00e9")]
    write_image(root, "training", "ADE_train_00000001", [2978, 1831, 0, 3000, 7], objects, "latin-1")
    write_image(root, "validation", "ADE_val_00000001", [1831, 2978], objects[:2])
    return root


def build(root, tmp_path, **fields):
    return ade20k_full.build_ade20k_full(
        ade20k_full.Arguments(root=root, out=str(tmp_path / "out"), processes=1, **fields)
    )


def test_the_847_classes_of_the_benchmark(root, tmp_path):
    info = build(root, tmp_path)
    assert info.num_classes == 847 and info.classes[0] == "wall" and info.classes[11] == PERSON
    assert read_split(tmp_path / "out", "train")["ADE_train_00000001"][1] == [[0, 11, X, X, X]]
    assert read_split(tmp_path / "out", "val")["ADE_val_00000001"][1] == [[11, 0]]


def test_all_classes_that_were_named(root, tmp_path):
    info = build(root, tmp_path, classes="all")
    assert info.classes == ["caf\u00e9", PERSON, "wall", "no class of the benchmark"]
    assert read_split(tmp_path / "out", "train")["ADE_train_00000001"][1] == [[2, 1, X, 3, 0]]


def test_the_table_holds_847_different_full_names():
    names = class_names(read_table("ade20k_847"))
    assert len(set(names)) == len(names) == 847
    first = Counter(name.partition(",")[0] for name in names)
    assert sum(number > 1 for number in first.values()) == 9, "first synonyms that stand for several classes"


def test_an_id_without_a_name_and_a_name_that_changes(root, tmp_path):
    write_image(root, "training", "ADE_train_00000002", [2978, 5], [(2978, "wall")])
    with pytest.raises(DataError, match=r"00000002_seg.png: mask has id 5: .*that some image's json names"):
        build(root, tmp_path)
    ade20k_full.list_pairs.cache_clear()
    write_image(root, "training", "ADE_train_00000002", [2978], [(2978, "wand")])
    with pytest.raises(DataError, match=r"00000002.json calls 2978 'wand', but other files call it 'wall'"):
        build(root, tmp_path)


def test_damaged_data_set_is_built_again_as_verify_says(root, tmp_path, capsys):
    build(root, tmp_path)
    built_again_as_verify_says(tmp_path / "out", capsys, tmp_path)
