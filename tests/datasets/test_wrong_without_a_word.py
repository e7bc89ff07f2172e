"""Inputs that once gave a wrong data set with exit code 0: each is now right, or refused, or in the report."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from trees import IGNORE, read_split, uint8, write_jpeg, write_json, write_png, write_text

import folder
from common import polygons
from common.class_names import read_name_table, read_names
from common.images import read_stored
from folders.arguments import Arguments
from folders.splits import keys_of, usual_split
from kiloseg.data import describe, verify
from kiloseg.data.codec import encode_image
from kiloseg.data.description import read_info
from kiloseg.storage.errors import DataError

X = IGNORE
SCRIPT = Path(__file__).parents[2] / "datasets" / "folder.py"


def build(tmp_path, **fields):
    return folder.build_folder(Arguments(out=str(tmp_path / "out"), processes=1, **fields))


def masked(tmp_path, **pairs):
    """Images with masks: relative name to rows of ids."""
    for name, rows in pairs.items():
        name = name.replace("__", "/")
        write_jpeg(tmp_path / f"images/{name}.jpg", len(rows), len(rows[0]))
        write_png(tmp_path / f"masks/{name}.png", uint8(*rows))
    write_json(tmp_path / "n.json", ["sky", "tree"])
    return {"images": tmp_path / "images", "masks": tmp_path / "masks", "names": tmp_path / "n.json"}


def coco(tmp_path, annotations, name="a.jpg", height=4, width=6):
    write_jpeg(tmp_path / "images" / name, height, width)
    write_json(
        tmp_path / "i.json",
        {
            "images": [{"id": 1, "height": height, "width": width, "file_name": name}],
            "annotations": [{"image_id": 1, "category_id": c, "segmentation": s} for c, s in annotations],
            "categories": [{"id": 1, "name": "sky"}, {"id": 2, "name": "tree"}],
        },
    )
    return {"images": tmp_path / "images", "annotations": tmp_path / "i.json"}


# S1: splits


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("training", "validation", "testing"),
        ("train2017", "val2017", "test2017"),
        ("Train", "Val", "Test"),
        ("train", "valid", "test"),
    ],
)
def test_folders_with_the_usual_names_are_the_splits(tmp_path, capsys, train, val, test):
    fields = masked(
        tmp_path, **{f"{train}__a": [[0, 1]], f"{train}__b": [[0, 0]], f"{val}__c": [[1, 1]], f"{test}__d": [[1, 0]]}
    )
    info = build(tmp_path, **fields)
    assert list(info.splits) == ["train", "val"]
    assert set(read_split(tmp_path / "out", "train")) == {f"{train}_a", f"{train}_b"}
    assert set(read_split(tmp_path / "out", "val")) == {f"{val}_c"}
    assert "1 images of split test are left out; --test includes them" in capsys.readouterr().out
    build(tmp_path, **fields, test=True)
    assert set(read_split(tmp_path / "out", "test")) == {f"{test}_d"}


def test_an_unknown_split_asks(tmp_path):
    fields = masked(tmp_path, train__a=[[0, 1]], holdout__b=[[0, 1]])
    with pytest.raises(DataError, match=r"holdout/b.jpg is not in a split's folder.*--splits holdout=train"):
        build(tmp_path, **fields)
    build(tmp_path, **fields, splits=("holdout=val",))
    assert set(read_split(tmp_path / "out", "val")) == {"holdout_b"}
    assert list(build(tmp_path, **fields, splits=("holdout=none",)).splits) == ["train"]
    with pytest.raises(ValueError, match=r"--splits holdout: expected FOLDER=train"):
        Arguments(out="o", **fields, splits=("holdout",))


@pytest.mark.parametrize("name", ["trainer", "value", "tester", "contest", "devices", "images"])
def test_other_folders_are_no_splits(name):
    assert usual_split(name) is None


def test_file_names_in_one_json_tell_the_splits(tmp_path, capsys):
    names = ["train/a.jpg", "valid/b.jpg", "test/c.jpg"]
    for name in names:
        write_jpeg(tmp_path / "images" / name, 2, 4)
    content = {
        "images": [{"id": n, "height": 2, "width": 4, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            {"image_id": n, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 2, 0, 2]]} for n in range(3)
        ],
        "categories": [{"id": 1, "name": "sky"}, {"id": 2, "name": "tree"}],
    }
    write_json(tmp_path / "i.json", content)
    build(tmp_path, images=tmp_path / "images", annotations=tmp_path / "i.json")
    assert set(read_split(tmp_path / "out", "val")) == {"valid_b"}
    assert set(read_split(tmp_path / "out", "train")) == {"train_a"}
    assert "1 images of split test are left out" in capsys.readouterr().out


def test_a_split_without_images_is_said(tmp_path, capsys):
    build(tmp_path, **coco(tmp_path, [(1, [[0, 0, 6, 0, 6, 4, 0, 4]])]))
    printed = capsys.readouterr().out
    assert "no images for split val" in printed and "warning: there is no split val" in printed


# S2: overlaps


def box(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [("smallest", [1, 1, 0, 0, 1, 1]), (None, [1, 1, 0, 0, 1, 1]), ("first", [1, 1, 1, 1, 1, 1]), ("last", [1, 1, 0, 0, 1, 1])],
)  # fmt: skip
def test_a_small_object_before_a_large_one(tmp_path, capsys, overlap, expected):
    """The large one comes first in the file: with "first" it hides the small one wholly, which the report counts."""
    build(tmp_path, **coco(tmp_path, [(2, [box(0, 0, 6, 4)]), (1, [box(2, 0, 4, 4)])]), overlap=overlap)
    assert read_split(tmp_path / "out", "train")["a"][1] == [expected] * 4
    hidden = int(overlap == "first")
    assert read_info(tmp_path / "out").report["objects_hidden"] == hidden
    assert ("1 objects are hidden completely" in capsys.readouterr().out) == bool(hidden)


def test_smallest_is_not_last(tmp_path):
    fields = coco(tmp_path, [(1, [box(2, 0, 4, 4)]), (2, [box(0, 0, 6, 4)])])
    build(tmp_path, **fields)
    assert read_split(tmp_path / "out", "train")["a"][1] == [[1, 1, 0, 0, 1, 1]] * 4
    build(tmp_path, **fields, overlap="last")
    assert read_split(tmp_path / "out", "train")["a"][1] == [[1] * 6] * 4


# S3: boxes


@pytest.mark.parametrize("segmentation", [[], None, [[]]])
def test_boxes_alone_are_refused(tmp_path, segmentation):
    with pytest.raises(DataError, match=r"i.json has 2 regions and none has a shape, as in exports of boxes only"):
        build(tmp_path, **coco(tmp_path, [(1, segmentation), (2, segmentation)]))


def test_some_boxes_are_counted(tmp_path, capsys):
    build(tmp_path, **coco(tmp_path, [(1, []), (2, [box(0, 0, 6, 4)])]))
    assert read_info(tmp_path / "out").report["regions_without_shape"] == 1
    printed = capsys.readouterr().out
    assert "1 regions without a shape" in printed and "1 of 2 regions have no shape" in printed


def test_describe_draws_a_data_set_that_is_ignored_throughout(tmp_path):
    build(tmp_path, **masked(tmp_path, train__a=[[255, 255]], val__b=[[255, 255]]))
    assert verify.verify(str(tmp_path / "out"), processes=1) == []
    assert describe.main(describe.Arguments(directory=str(tmp_path / "out"), out=tmp_path / "drawn")) == 0
    assert (tmp_path / "drawn/frequency.png").is_file()


# S4 and tables


def test_columns_past_the_name_are_no_part_of_it(tmp_path):
    write_text(tmp_path / "n.csv", "id,name\n0,sky\n1,traffic light, traffic signal, stoplight\n")
    assert read_names(tmp_path / "n.csv") == {0: "sky", 1: "traffic light, traffic signal, stoplight"}
    write_text(tmp_path / "n.csv", "id,name,color\n0,sky,red\n1,traffic light, traffic signal,blue\n")
    with pytest.raises(DataError, match=r"n.csv is not a table.*line 3 has 4 columns, the first line 3"):
        read_names(tmp_path / "n.csv")


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("n.txt", b"sky\ntree, or bush\n"),
        ("n.txt", b"0 sky\n1 tree, or bush\n"),
        ("n.txt", b"0: sky\n1: tree, or bush\n"),
        ("n.csv", b"ID;Name\n0;sky\n1;tree, or bush\n"),
        ("n.tsv", b"idx\tLabel\n0\tsky\n1\ttree, or bush\n"),
        ("_classes.csv", b'Pixel Value, Class\n0, sky\n1, "tree, or bush"\n'.replace(b' "tree, or bush"', b" tree, or bush")),
        ("n.csv", "\ufeffid,name\n0,sky\n1,\"tree, or bush\"\n".encode()),
        ("n.csv", "id,name\n0,sky\n1,\"tree, or bush\"\n".encode("utf-16")),
        ("n.json", b'{"sky": 0, "tree, or bush ": 1}'),
        ("n.json", b'{"names": {"0": "sky", "1": "tree, or bush"}}'),
        ("d.yaml", b"path: x\nnames:\n  0: sky\n  1: tree, or bush\n"),
        ("d.yaml", b"nc: 2\nnames: [sky, 'tree, or bush']\n"),
    ],
)  # fmt: skip
def test_tables_in_usual_forms(tmp_path, file, data):
    (tmp_path / file).write_bytes(data)
    assert read_names(tmp_path / file) == {0: "sky", 1: "tree, or bush"}


def test_latin_1_is_read_with_a_warning(tmp_path):
    (tmp_path / "n.csv").write_bytes("id,name\n0,süd\n1,tree\n".encode("latin-1"))
    with pytest.warns(UserWarning, match="n.csv is not in UTF-8"):
        assert read_names(tmp_path / "n.csv") == {0: "süd", 1: "tree"}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labelmap.txt", "# label:color_rgb:parts:actions\nsky:70,130,180::\na:b:1,2,3::\n"),
        ("n.csv", "name,r,g,b\nsky,70,130,180\na:b,1,2,3\n"),
        ("n.json", '{"sky": [70, 130, 180], "a:b": [1, 2, 3]}'),
    ],
)
def test_tables_with_colors(tmp_path, file, text):
    write_text(tmp_path / file, text)
    table = read_name_table(tmp_path / file)
    assert table.names == {0: "sky", 1: "a:b"} and table.colors == {(70, 130, 180): 0, (1, 2, 3): 1}


# S5: geometry


def test_polygons_of_pairs_are_understood():
    flat, pairs = (polygons.to_rles(text, 4, 6) for text in (b"[[1,1,3,1,3,3,1,3]]", b"[[[1,1],[3,1],[3,3],[1,3]]]"))
    assert pycocotools.mask.decode(flat).sum() == pycocotools.mask.decode(pairs).sum() == 4


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (b'[["1","1","3","1","3","3"]]', "a coordinate is '1', expected a number"),
        (b"[[1,1,null,1,3,3]]", "a coordinate is None"),
        (b"[[1,1,true,1,3,3]]", "a coordinate is True"),
        (b"[[1,1,1e9,1,3,3]]", "a coordinate x is 1000000000.0, expected -24 to 30 in an image of 6 pixels"),
        (b"[[1,1,3,-1e300,3,3]]", "a coordinate y is -1e"),
        (b"[[1,1,NaN,1,3,3]]", "JSON is malformed"),
        (b"[[1,1,1e999,1,3,3]]", "out of range|coordinate"),
        (b'{"size":[4,6],"counts":[1000000000000,1]}', "add up to 1000000000001, its image has 24"),
        (b'{"size":[1000000,1000000],"counts":[24]}', "an RLE of size"),
        (b'{"size":[4,6],"counts":[20,"4"]}', "not whole numbers"),
        (b'{"size":[4,6],"counts":""}', "add up to 0, its image has 24"),
        (b'{"size":[4,6],"counts":"55"}', "add up to 10, its image has 24"),
    ],
)
def test_geometry_is_checked_before_it_reaches_c(segmentation, message):
    with pytest.raises(ValueError, match=message):
        polygons.to_rles(segmentation, 4, 6)


def test_the_pixels_of_a_compressed_rle_are_counted_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.001, 0.1, 0.5, 1.0):
        for height, width in ((1, 1), (3, 5), (480, 640)):
            mask = np.asfortranarray(rng.random((height, width)) < share, np.uint8)
            rle = pycocotools.mask.encode(mask)
            assert polygons.compressed_counts(rle["counts"]).sum() == height * width
            text = json.dumps({"size": [height, width], "counts": rle["counts"].decode()}).encode()
            (ours,) = polygons.to_rles(text, height, width)
            assert np.array_equal(polygons.decode(ours), mask) and polygons.area(ours) == mask.sum()


def test_a_json_that_says_a_huge_size_is_refused_before_anything_is_drawn(tmp_path):
    fields = coco(tmp_path, [(1, [box(0, 0, 6, 4)])])
    content = json.loads((tmp_path / "i.json").read_text())
    content["images"][0].update(height=2_000_000, width=2_000_000)
    write_json(tmp_path / "i.json", content)
    with pytest.raises(DataError, match=r"sample a: mask is \(2000000, 2000000\), its image \(4, 6\)"):
        build(tmp_path, **fields)


# S6: formats of images


@pytest.mark.parametrize("kind", ["WEBP", "BMP", "TIFF", "GIF", "JPEG"])
def test_other_formats_are_stored_without_loss(tmp_path, kind):
    suffix = {"JPEG": "jfif", "TIFF": "tif"}.get(kind, kind.lower())
    fields = masked(tmp_path, a=[[0, 1, 0], [1, 0, 1]])
    (tmp_path / "images/a.jpg").unlink()
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
    Image.fromarray(pixels).save(tmp_path / f"images/a.{suffix}", kind)
    (tmp_path / "images/b.heic").write_bytes(b"x")
    info = build(tmp_path, **fields)
    data = read_split(tmp_path / "out", "train")["a"][0]
    with Image.open(tmp_path / f"images/a.{suffix}") as seen:
        expected = np.asarray(seen.convert("RGB"))
    path = tmp_path / "stored"
    path.write_bytes(data)
    with Image.open(path) as stored:
        assert stored.format == ("JPEG" if kind == "JPEG" else "PNG")
        assert np.array_equal(np.asarray(stored.convert("RGB")), expected)
    assert info.report["left_out"] == {".heic files": 1}


# S7 and the report


def test_masks_of_0_and_255_over_a_table_of_0_and_1(tmp_path, capsys):
    build(tmp_path, **masked(tmp_path, train__a=[[0, 255]], val__b=[[0, 255]]))
    assert (
        "id 255 is ignored in 2 masks, and no sample shows class 1 'tree'; if 255 means that" in capsys.readouterr().out
    )
    write_json(tmp_path / "n.json", {"0": "sky", "255": "tree"})
    build(tmp_path, images=tmp_path / "images", masks=tmp_path / "masks", names=tmp_path / "n.json")
    assert read_split(tmp_path / "out", "train")["train_a"][1] == [[0, 1]]


def test_the_report_counts_and_warns(tmp_path, capsys):
    fields = masked(tmp_path, train__a=[[0, 0, 255, 255, 255]], val__b=[[0, 1, 1, 1, 1]])
    report = build(tmp_path, **fields).report
    assert report["samples"] == {"train": 1, "val": 1} and report["ignored"] == {"train": 0.6, "val": 0.0}
    assert report["classes_without_sample"] == {"train": [1], "val": []}
    printed = capsys.readouterr().out
    assert "warning: 1 classes are in val but not in train: 1 'tree'" in printed
    assert "warning: 60.0% of the pixels of train are ignored" in printed
    assert read_info(tmp_path / "out").report == report


def test_strict_makes_warnings_errors(tmp_path):
    fields = masked(tmp_path, train__a=[[0, 0]], val__b=[[0, 1]])
    with pytest.raises(DataError, match=r"1 classes are in val but not in train.*\(without --strict"):
        build(tmp_path, **fields, strict=True)
    assert not (tmp_path / "out/dataset.json").exists()
    build(tmp_path, **fields)
    fine = masked(tmp_path, train__a=[[0, 1]], val__b=[[0, 1]])
    build(tmp_path, **fine, strict=True)


# Files that nobody meant, and names


def test_hidden_folders_are_skipped_and_links_followed_once(tmp_path):
    fields = masked(tmp_path, a=[[0, 1]], b=[[1, 0]])
    for hidden in (".ipynb_checkpoints/a-checkpoint", "__MACOSX/a"):
        write_jpeg(tmp_path / f"images/{hidden}.jpg", 1, 2)
    (tmp_path / "images/again").symlink_to(tmp_path / "images")
    info = build(tmp_path, **fields)
    assert sum(info.num_samples(split) for split in info.splits) == 2


def test_equal_images_of_train_and_val_are_reported(tmp_path, capsys):
    fields = masked(tmp_path, train__a=[[0, 1]], val__b=[[1, 0]])
    (tmp_path / "images/val/b.jpg").write_bytes((tmp_path / "images/train/a.jpg").read_bytes())
    build(tmp_path, **fields)
    assert "1 images of one split are byte for byte in another: train train_a = val val_b" in capsys.readouterr().out
    assert verify.main(verify.Arguments(directory=str(tmp_path / "out"), processes=1)) == 0
    assert (
        "warning: val-000000.tar: sample val_b of val has the same image, byte for byte, as" in capsys.readouterr().out
    )


def test_names_that_differ_in_what_a_key_cannot_hold(tmp_path):
    keys = keys_of(["IMG (1).jpg", "IMG_(1).jpg", "IMG__1_.jpg", "c.jpg"])
    assert len(set(keys.values())) == 4 and keys["c.jpg"] == "c"
    long = keys_of(["日" * 80 + "a.jpg", "日" * 80 + "b.jpg"])
    assert len(set(long.values())) == 2 and all(len(key.encode()) <= 90 for key in long.values())


def test_names_in_composed_and_decomposed_form_match(tmp_path):
    write_jpeg(tmp_path / "images/caf\u00e9.jpg", 1, 2)
    write_png(tmp_path / "masks/cafe\u0301.png", uint8([0, 1]))
    write_json(tmp_path / "n.json", ["sky", "tree"])
    build(tmp_path, images=tmp_path / "images", masks=tmp_path / "masks", names=tmp_path / "n.json")
    assert list(read_split(tmp_path / "out", "train")) == ["caf\u00e9"]


def test_a_truncated_image_is_refused_by_its_own_name(tmp_path):
    fields = masked(tmp_path, a=[[0] * 64] * 64)
    path = tmp_path / "images/a.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"images/a.jpg cannot be decoded .*expected a whole image"):
        build(tmp_path, **fields)


def test_masks_of_0_and_255_are_told_and_the_advice_helps(tmp_path, capsys):
    """https://github.com/milesial/Pytorch-UNet/issues/375: there 255 is past the last class."""
    fields = masked(tmp_path, train__a=[[0, 255]], val__b=[[255, 0]])
    build(tmp_path, **fields)
    assert "if 255 means that class, give it id 255 in the table of names" in capsys.readouterr().out
    write_text(tmp_path / "n.csv", "id,name\n0,sky\n255,tree\n")
    build(tmp_path, **fields | {"names": tmp_path / "n.csv"})
    assert "if 255 means" not in capsys.readouterr().out
    assert [sample[1] for sample in read_split(tmp_path / "out", "train").values()] == [[[0, 1]]]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "it is empty"), (b"<html>404</html>", "it begins with b'<html>404</html>'")]
)
def test_a_file_that_is_no_image_is_named_with_what_it_is(tmp_path, content, reason):
    fields = masked(tmp_path, train__a=[[0, 1]], val__b=[[1, 0]])
    (tmp_path / "images/train/a.jpg").write_bytes(content)
    with pytest.raises(
        DataError, match=rf"images/train/a.jpg is not a readable image \({re.escape(reason)}\): expected"
    ):
        build(tmp_path, **fields)


def test_a_jpeg_with_a_second_picture_is_a_jpeg(tmp_path):
    first, second = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (4, 3), "blue")
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    data = read_stored(tmp_path / "a.jpg", exif="refuse")
    assert encode_image(data)[0] == "jpg" and encode_image(data)[2] == (6, 8)


def test_a_damaged_build_is_built_again_as_verify_says(tmp_path, capsys):
    masked(tmp_path / "my data", train__a=[[0, 1]], val__b=[[1, 0]])
    where = tmp_path / "my data"
    options = [
        "--images",
        where / "images",
        "--masks",
        where / "masks",
        "--names",
        where / "n.json",
        "--out",
        where / "out",
    ]
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, options), "--processes", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shard = where / "out/train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 255
    shard.write_bytes(content)
    assert verify.main(verify.Arguments(directory=str(where / "out"), processes=1)) == 1
    advice = capsys.readouterr().out.strip().splitlines()[-1].partition("build the data set again: python ")[2]
    done = subprocess.run(
        f"{sys.executable} {advice}", shell=True, cwd=SCRIPT.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert verify.verify(str(where / "out"), processes=1) == []
