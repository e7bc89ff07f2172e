"""Builders of Cityscapes, VOC, ADE20K and COCO-Stuff 10k on tiny archives in the layouts of the real ones."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from damage import built_again_as_verify_says
from scipy.io import savemat
from trees import IGNORE, read_split, uint8, write_jpeg, write_png, write_text

import ade20k
import cityscapes
import coco_stuff10k
import voc
from common import label_table, pairs
from common.archive import read_mask
from common.matlab import read_matlab
from kiloseg.data.description import read_info
from kiloseg.data.index import class_samples, read_index
from kiloseg.storage.errors import DataError

DATASETS = Path(__file__).parents[2] / "datasets"


def build(module, root, out, **fields):
    """By the function that the command calls."""
    arguments = module.Arguments(root=root, out=str(out), processes=1, **fields)
    return getattr(module, f"build_{module.NAME}")(arguments)


def command(name, *options):
    return subprocess.run([sys.executable, DATASETS / f"{name}.py", *map(str, options)], capture_output=True, text=True)


# Cityscapes


CITY = "aachen_000000_000019"


@pytest.fixture
def cityscapes_root(tmp_path):
    root = tmp_path / "archives"
    ids = np.arange(36, dtype=np.uint8).reshape(4, 9) % 34  # all raw ids, 0 and 1 twice
    for split, city, name in (
        ("train", "aachen", CITY),
        ("train", "ulm", "ulm_000094_000019"),
        ("val", "lindau", "lindau_000000_000019"),
    ):
        write_png(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", np.full((4, 9, 3), 7, np.uint8))
        write_png(root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", ids)
        write_png(root / f"gtFine/{split}/{city}/{name}_gtFine_color.png", np.zeros((4, 9, 3), np.uint8))
    return root


def test_cityscapes_by_command(cityscapes_root, tmp_path):
    out = tmp_path / "out"
    done = command("cityscapes", "--root", cityscapes_root, "--out", out, "--shard-size", 1, "--processes", 2)
    assert done.returncode == 0, done.stderr
    assert "warning: cityscapes train has 2 samples here, but 2,975 were published" in done.stdout
    info = read_info(out)
    assert info.num_classes == 19 and info.classes[0] == "road" and info.classes[18] == "bicycle"
    assert info.background is None and "--shard-size 1" in info.command and "non-commercial" in info.license
    assert [len(info.shards(split)) for split in ("train", "val")] == [2, 1]
    samples = read_split(out, "train")
    assert set(samples) == {CITY, "ulm_000094_000019"}
    image, mask, meta = samples[CITY]
    path = f"leftImg8bit/train/aachen/{CITY}_leftImg8bit.png"
    assert image == (cityscapes_root / path).read_bytes() and meta["image"] == path
    x = IGNORE
    assert mask == [
        [x, x, x, x, x, x, x, 0, 1],  # raw 0 to 8
        [x, x, 2, 3, 4, x, x, x, 5],  # 9 to 17
        [x, 6, 7, 8, 9, 10, 11, 12, 13],  # 18 to 26
        [14, 15, x, x, 16, 17, 18, x, x],  # 27 to 33, then 0 and 1
    ]
    assert class_samples(read_index(out, "train"), 19).tolist() == [2] * 19
    again = command("cityscapes", "--root", cityscapes_root, "--out", out, "--shard-size", 1)
    assert "is up to date" in again.stdout


def test_a_changed_file_is_built_again(cityscapes_root, tmp_path):
    first = build(cityscapes, cityscapes_root, tmp_path / "out")
    write_png(
        cityscapes_root / f"gtFine/train/aachen/{CITY}_gtFine_labelIds.png",
        np.full((4, 9), 7, np.uint8),
        compress_level=1,
    )
    assert build(cityscapes, cityscapes_root, tmp_path / "out").digest != first.digest
    assert read_split(tmp_path / "out", "train")[CITY][1] == [[0] * 9] * 4


def test_a_split_that_is_absent_is_left_out_and_said_so(cityscapes_root, tmp_path, capsys):
    (cityscapes_root / "leftImg8bit" / "val").rename(tmp_path / "elsewhere")
    info = build(cityscapes, cityscapes_root, tmp_path / "out")
    assert list(info.splits) == ["train"]
    assert f"{cityscapes_root}/leftImg8bit/val does not exist, so there will be no split val" in capsys.readouterr().out


def test_a_full_count_is_not_warned_of(capsys):
    pairs.check_count("cityscapes", "train", 2975, 2975)
    assert capsys.readouterr().out == ""


def test_cityscapes_without_masks_or_with_train_ids(cityscapes_root, tmp_path):
    path = cityscapes_root / f"gtFine/train/aachen/{CITY}_gtFine_labelIds.png"
    write_png(path, uint8([0, 255]))
    table = label_table.lookup({7: 0})
    with pytest.raises(
        DataError, match=r"labelIds.png: mask has id 0, 255: expected one of the 1 known ids 7 to 7. Expected labelIds"
    ):
        read_mask(path, archive_ids=cityscapes.ARCHIVE.ids, read=pairs.read_ids, table=table)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path} is missing. Unpack .*gtFine_trainvaltest.zip"):
        build(cityscapes, cityscapes_root, tmp_path / "out")
    (cityscapes_root / "gtFine").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"is missing, and 1 more of 2 masks. Unpack "):
        build(cityscapes, cityscapes_root, tmp_path / "out")


@pytest.mark.parametrize("module", [cityscapes, voc, ade20k, coco_stuff10k], ids=lambda module: module.NAME)
def test_nothing_of_the_archive(module, tmp_path):
    first = next(iter(module.ARCHIVE.places.values())).path if hasattr(module, "ARCHIVE") else voc.LISTS + "/train.txt"
    with pytest.raises(
        DataError, match=rf"{tmp_path} holds no files of {module.NAME}: expected {tmp_path / first} or .*Unpack"
    ):
        build(module, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mistake_ends_a_command_with_its_message_alone(tmp_path):
    done = command("ade20k", "--root", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path} holds no files of ade20k") and "Traceback" not in done.stderr


def test_a_cluster_that_does_not_answer_ends_a_command_with_a_message(cityscapes_root, tmp_path):
    options = ("--root", cityscapes_root, "--out", tmp_path / "out", "--address", "127.0.0.1:9")
    done = command("cityscapes", *options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: address = '127.0.0.1:9': no cluster answers" in done.stderr
    assert "0 of 2 shards are finished and kept" in done.stderr.splitlines()[-1]


# VOC and SBD


def write_sbd(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.zeros((20, 1), dtype=object)
    savemat(path, {"GTcls": {"Boundaries": boundaries, "Segmentation": ids, "CategoriesPresent": np.unique(ids)}})


@pytest.fixture
def voc_root(tmp_path):
    """VOC train a, b; val c, d. SBD train b, c, e; val d, f: trainaug is a, b, e, f."""
    root = tmp_path / "archives"
    devkit = root / "VOCdevkit/VOC2012"
    write_text(devkit / "ImageSets/Segmentation/train.txt", "a\nb\n")
    write_text(devkit / "ImageSets/Segmentation/val.txt", "c\nd\n")
    for name in "abcd":
        write_jpeg(devkit / f"JPEGImages/{name}.jpg", 2, 3, gray=name == "a")
        write_png(devkit / f"SegmentationClass/{name}.png", uint8([0, 1, 20], [255, 255, 15]), palette=True)
    sbd = root / "benchmark_RELEASE/dataset"
    write_text(sbd / "train.txt", "b\nc\ne\n")
    write_text(sbd / "val.txt", "d\nf\n")
    for name in "bcdef":
        write_jpeg(sbd / f"img/{name}.jpg", 2, 3)
        write_sbd(sbd / f"cls/{name}.mat", uint8([0, 3, 3], [20, 0, 7]))
    return root


def test_voc_trainaug(voc_root, tmp_path, capsys):
    info = build(voc, voc_root, tmp_path / "out")
    assert "train is trainaug" in capsys.readouterr().out
    assert info.num_classes == 21 and info.background == 0 and info.classes[20] == "tvmonitor"
    train, val = (read_split(tmp_path / "out", split) for split in ("train", "val"))
    assert set(train) == set("abef") and set(val) == set("cd")
    own = [[0, 1, 20], [IGNORE, IGNORE, 15]]
    assert train["a"][1] == train["b"][1] == val["c"][1] == val["d"][1] == own
    assert train["e"][1] == train["f"][1] == [[0, 3, 3], [20, 0, 7]]
    assert train["a"][0] == (voc_root / "VOCdevkit/VOC2012/JPEGImages/a.jpg").read_bytes()
    assert train["e"][0] == (voc_root / "benchmark_RELEASE/dataset/img/e.jpg").read_bytes()


def test_voc_without_sbd_and_with_a_part_of_it(voc_root, tmp_path, capsys):
    (voc_root / "benchmark_RELEASE/dataset/val.txt").unlink()
    with pytest.raises(DataError, match=r"benchmark_RELEASE/dataset/val.txt is missing: SBD lists its images"):
        voc.list_pairs(voc_root, "train")
    (voc_root / "benchmark_RELEASE").rename(tmp_path / "elsewhere")
    assert [pair.key for pair in voc.list_pairs(voc_root, "train")] == ["a", "b"]
    (voc_root / "VOCdevkit/VOC2012/JPEGImages/b.jpg").unlink()
    with pytest.raises(DataError, match=r"JPEGImages/b.jpg is missing. Unpack VOCtrainval"):
        build(voc, voc_root, tmp_path / "out")
    assert "train is VOC's own" in capsys.readouterr().out


def test_trainaug_needs_the_list_of_val(voc_root):
    (voc_root / voc.LISTS / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val.txt is missing: trainaug leaves out its images"):
        voc.list_pairs(voc_root, "train")


def test_lists_name_each_image_once(voc_root):
    write_text(voc_root / voc.LISTS / "val.txt", "c\nd\nc\n")
    with pytest.raises(DataError, match=r"val.txt lists 'c' twice"):
        voc.list_pairs(voc_root, "val")


def test_matlab_files_that_are_something_else(tmp_path):
    path = tmp_path / "x.mat"
    with pytest.raises(DataError, match=r"x.mat is missing"):
        read_matlab(path, ("S",))
    savemat(path, {"T": np.zeros((2, 2))})
    with pytest.raises(DataError, match=r"x.mat has no S"):
        read_matlab(path, ("S",))
    savemat(path, {"GTcls": np.zeros((2, 2))})
    with pytest.raises(DataError, match=r"x.mat has no GTcls.Segmentation, but GTcls"):
        read_matlab(
            path,
            (
                "GTcls",
                "Segmentation",
            ),
        )
    for damage in (b"", b"not a mat file" * 20, path.read_bytes()[:-20]):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"x.mat (is not a readable .mat file|has no GTcls)"):
            read_matlab(
                path,
                (
                    "GTcls",
                    "Segmentation",
                ),
            )


# ADE20K


@pytest.fixture
def ade20k_root(tmp_path):
    root = tmp_path / "archives"
    folder = root / "ADEChallengeData2016"
    for split, name, ids in (
        ("training", "ADE_train_00000001", uint8([0, 1, 150])),
        ("training", "ADE_train_00000002", uint8([149, 150, 2])),
        ("validation", "ADE_val_00000001", uint8([0, 0, 13])),
    ):
        write_jpeg(folder / f"images/{split}/{name}.jpg", 1, 3, gray=name.endswith("2"))
        write_png(folder / f"annotations/{split}/{name}.png", ids)
    return root


def test_ade20k(ade20k_root, tmp_path):
    jpegs = {path.stem: path.read_bytes() for path in ade20k_root.rglob("*.jpg")}
    info = build(ade20k, ade20k_root, tmp_path / "out")
    assert info.num_classes == 150 and (info.classes[0], info.classes[149]) == ("wall", "flag")
    train, val = (read_split(tmp_path / "out", split) for split in ("train", "val"))
    assert train["ADE_train_00000001"][1] == [[IGNORE, 0, 149]]
    assert train["ADE_train_00000002"][1] == [[148, 149, 1]]
    assert val["ADE_val_00000001"][1] == [[IGNORE, IGNORE, 12]]
    assert {name: sample[0] for name, sample in (train | val).items()} == jpegs
    table = label_table.lookup(dict.fromkeys(range(151), 0))
    write_png(tmp_path / "full.png", uint8([151, 0, 255]))
    with pytest.raises(
        DataError, match=r"full.png: mask has id 151, 255: .* 0 to 150. Expected annotations of the challenge"
    ):
        read_mask(tmp_path / "full.png", archive_ids=ade20k.ARCHIVE.ids, read=pairs.read_ids, table=table)


# COCO-Stuff 10k


@pytest.fixture
def stuff_root(tmp_path):
    root = tmp_path / "archives"
    write_text(root / "imageLists/train.txt", "COCO_train2014_000000000077\nCOCO_train2014_000000000086\n")
    write_text(root / "imageLists/test.txt", "COCO_train2014_000000000349\n")
    ids = {"077": [0, 1, 182], "086": [90, 92, 13], "349": [11 + 2, 27, 181]}
    for name, row in ids.items():
        write_jpeg(root / f"images/COCO_train2014_000000000{name}.jpg", 1, 3)
        path = root / f"annotations/COCO_train2014_000000000{name}.mat"
        path.parent.mkdir(exist_ok=True)
        savemat(path, {"S": np.array([row], dtype=np.uint16), "regionLabelsStuff": np.zeros((2, 1)), "captions": ["a"]})
    return root


def test_coco_stuff10k_171(stuff_root, tmp_path):
    info = build(coco_stuff10k, stuff_root, tmp_path / "out")
    assert info.num_classes == 171 and info.classes[11] == "stop sign" and info.classes[170] == "wood"
    assert not set(info.classes) & {"street sign", "hair brush"}
    train, val = (read_split(tmp_path / "out", split) for split in ("train", "val"))
    # Unused below 13: 12; below 90: 12, 26, 29, 30, 45, 66, 68, 69, 71, 83; below 92 also 91. Class ids count from 0.
    assert train["COCO_train2014_000000000077"][1] == [[IGNORE, 0, 170]]
    assert train["COCO_train2014_000000000086"][1] == [[79, 80, 11]]
    assert val["COCO_train2014_000000000349"][1] == [[11, 24, 169]]


def test_coco_stuff10k_182(stuff_root, tmp_path):
    info = build(coco_stuff10k, stuff_root, tmp_path / "out", num_classes=182)
    assert info.num_classes == 182 and info.classes[11] == "street sign" and "--num-classes 182" in info.command
    train = read_split(tmp_path / "out", "train")
    assert train["COCO_train2014_000000000077"][1] == [[IGNORE, 0, 181]]
    assert train["COCO_train2014_000000000086"][1] == [[89, 91, 12]]


def test_coco_stuff10k_with_an_unused_id(stuff_root, tmp_path):
    path = stuff_root / "annotations/COCO_train2014_000000000077.mat"
    savemat(path, {"S": np.array([[12, 1, 1]], dtype=np.uint16)})
    with pytest.raises(
        DataError,
        match=r"077.mat: mask has id 12: expected one of the 172 known ids 0 to 182. Expected label maps of version 1.1",
    ):
        build(coco_stuff10k, stuff_root, tmp_path / "out")


# What they share


def test_label_tables():
    """Counts and borders as published; every id once."""
    for name, column, count in (
        ("cityscapes", "class_id", 19),
        ("voc", "class_id", 21),
        ("ade20k", "class_id", 150),
        ("coco_stuff", "class_id_171", 171),
        ("coco_stuff", "class_id_182", 182),
        ("coco_lvis_1284", "class_id", 1284),
    ):
        names = label_table.class_names(label_table.read_table(name), column)
        assert len(names) == count and all(names)
    rows = label_table.read_table("coco_stuff")
    assert len([row for row in rows if row["kind"] == "unused"]) == 11
    with pytest.raises(ValueError, match="expected each id from 0 on once"):
        label_table.class_names([{"class_id": "1", "name": "a"}, {"class_id": "1", "name": "b"}])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (np.array([[0, 255, 256, 1203, 1284, 65535]], np.uint16), [[1, 2, 3, 4, 5, 6]]),
        (np.array([[0, 256]], np.int32), [[1, 3]]),
        (np.array([[0, 256]], np.uint32), [[1, 3]]),
        (np.array([[0.0, 1284.0]]), [[1, 5]]),
        (np.array([[False, False]]), [[1, 1]]),
        (np.zeros((0, 3), np.uint8), []),
    ],
    ids=["uint16", "int32", "uint32", "float", "bool", "empty"],
)
def test_lookup_of_any_type(raw, expected):
    table = label_table.lookup({0: 1, 255: 2, 256: 3, 1203: 4, 1284: 5, 65535: 6})
    assert label_table.to_class_ids(raw, table, Path("x"), "").tolist() == expected


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.array([[-1, 0]]), "mask has ids -1 to 0: expected 0 to 65535"),
        (np.array([[0, 65536]]), "mask has ids 0 to 65536"),
        (np.array([[0.5, 0]]), "fractions"),
        (np.zeros((2, 2, 3), np.uint8), "expected ids of shape"),
        (np.array([["a"]]), "expected ids of shape"),
        (np.arange(20)[None], "has id 1, 2, 3, 4, 5 and 14 more"),
    ],
)
def test_masks_that_mean_nothing(raw, message):
    with pytest.raises(DataError, match=message):
        label_table.to_class_ids(raw, label_table.lookup({0: 0}), Path("x"), "")


def test_replacing_ids_one_after_another_is_not_what_lookup_does():
    assert label_table.to_class_ids(
        uint8([1, 2, 3]), label_table.lookup({1: 2, 2: 3, 3: 1}), Path("x"), ""
    ).tolist() == [[2, 3, 1]]


def test_order_of_samples_depends_on_their_keys_alone(cityscapes_root):
    """Two splits that share keys have them in the same order; it is not that of the archive."""
    keys = [f"city_{number}" for number in range(50)]
    ordered = sorted(keys, key=pairs.order)
    assert ordered != keys and [key for key in ordered if key != "city_7"] == sorted(
        set(keys) - {"city_7"}, key=pairs.order
    )
    found = pairs.find_splits("cityscapes", cityscapes_root, cityscapes.ARCHIVE.places, cityscapes.list_pairs, "")
    assert [pair.key for pair in found["train"]] == sorted((pair.key for pair in found["train"]), key=pairs.order)


def test_an_image_that_is_cut_off_ends_a_build_by_its_name(tmp_path):
    path = tmp_path / "a.jpg"
    write_jpeg(path, 64, 64)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=rf"{path} cannot be decoded .*expected a whole image; restore it"):
        pairs.read_image(path)
    whole = write_jpeg(path, 64, 64) + b"a camera's own bytes"
    path.write_bytes(whole)
    assert pairs.read_image(path) == whole


# Damage


def test_image_that_is_too_large_is_advised_to_be_tiled(tmp_path, monkeypatch):
    write_jpeg(tmp_path / "a.jpg", 40, 60)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a.jpg is too large .*datasets/folder.py --tile 1024"):
        pairs.read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("name", ["ade20k", "cityscapes", "voc", "coco_stuff10k"])
def test_damaged_data_set_is_built_again_as_verify_says(request, name, tmp_path, monkeypatch, capsys):
    root = request.getfixturevalue({"coco_stuff10k": "stuff_root"}.get(name, f"{name}_root"))
    monkeypatch.chdir(tmp_path)
    done = command(name, "--root", root.name, "--out", "my data", "--processes", 1)
    assert done.returncode == 0, done.stderr
    (tmp_path / "elsewhere").mkdir()
    built_again_as_verify_says(tmp_path / "my data", capsys, tmp_path / "elsewhere")
