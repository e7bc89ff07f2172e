"""The folder builder on a user's own images: masks of every kind, annotations, splits and names."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import IGNORE, read_split, uint8, write_jpeg, write_json, write_png, write_text

import folder
from common import pairs
from common.class_names import read_names
from common.images import read_stored
from folders.arguments import Arguments
from folders.mask_files import MaskReader
from folders.splits import divide
from kiloseg.data.description import read_info
from kiloseg.storage.errors import DataError

SCRIPT = Path(__file__).parents[2] / "datasets" / "folder.py"
X = IGNORE


def build(tmp_path, **fields):
    return folder.build_folder(Arguments(images=tmp_path / "images", out=str(tmp_path / "out"), processes=1, **fields))


def command(*options):
    return subprocess.run([sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True)


def write_gray(path, rows, bits):
    """A grayscale PNG of fewer than 8 bits, which Pillow cannot write; rows of whole bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    per_byte = 8 // bits
    packed = b""
    for row in rows:
        packed += b"\0"
        for start in range(0, len(row), per_byte):
            packed += bytes([sum(v << bits * (per_byte - 1 - n) for n, v in enumerate(row[start : start + per_byte]))])
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    )


# Masks


NAMES = "id,name\n0,sky\n255,road\n256,tree\n1203,zucchini\n1284,wood\n7,\n"


def test_16_bit_masks_by_command(tmp_path):
    """Ids of more than 8 bits, and train and val by folders."""
    row = np.array([[0, 255, 256, 1203, 1284, 65535, 7]], np.uint16)
    jpegs = [
        write_jpeg(tmp_path / f"images/{name}", 1, 7) for name in ("train/a/one.jpg", "train/two.JPG", "val/a.b.jpeg")
    ]
    for name in ("train/a/one.png", "train/two.png", "val/a.b.png"):
        write_png(tmp_path / "masks" / name, row)
    write_text(tmp_path / "classes.csv", NAMES)
    places = [
        "--processes",
        "1",
        "--images",
        tmp_path / "images",
        "--masks",
        tmp_path / "masks",
        "--names",
        tmp_path / "classes.csv",
    ]
    done = command(*places, "--out", tmp_path / "out", "--name", "mine", "--license", "mine, all mine")
    assert done.returncode == 0, done.stderr
    info = read_info(tmp_path / "out")
    assert info.name == "mine" and info.license == "mine, all mine" and info.background is None
    assert info.classes == ["sky", "road", "tree", "zucchini", "wood"]
    train, val = (read_split(tmp_path / "out", split) for split in ("train", "val"))
    assert set(train) == {"train_a_one", "train_two"} and set(val) == {"val_a_b"}
    for sample in (train | val).values():
        assert sample[1] == [[0, 1, 2, 3, 4, X, X]]
    assert [train["train_a_one"][0], train["train_two"][0], val["val_a_b"][0]] == jpegs
    assert train["train_a_one"][2] == {"image": "train/a/one.jpg", "mask": "train/a/one.png"}
    write_text(tmp_path / "classes.csv", NAMES.replace("7,", "8,"))
    done = command(*places, "--out", tmp_path / "other")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "mask has id 7: expected one of the 7 known ids 0 to 65535" in done.stderr and "--ignore-id" in done.stderr


@pytest.mark.parametrize(
    ("ignore_id", "names", "expected"),
    [
        (None, ["a", "b"], [0, 1, X, X]),  # 255 is ignored by default; 2 has no name and is ignored below
        (None, {0: "a", 1: "b", 2: "", 255: "c"}, [0, 1, X, 2]),  # unless it has a name
        (2, {0: "a", 1: "b", 255: "c"}, [0, 1, X, 2]),
        (1, {0: "a", 2: "b", 255: "c"}, [0, X, 1, 2]),
    ],
)
def test_8_bit_masks(tmp_path, ignore_id, names, expected):
    write_jpeg(tmp_path / "images/a.jpg", 1, 4)
    write_png(tmp_path / "masks/a.png", uint8([0, 1, 2, 255]))
    if isinstance(names, list):
        names = dict(enumerate(names)) | {2: ""}
    write_json(tmp_path / "names.json", names)
    build(tmp_path, masks=tmp_path / "masks", names=tmp_path / "names.json", ignore_id=ignore_id)
    assert read_split(tmp_path / "out", "train")["a"][1] == [expected]


def test_255_in_8_bits_is_ignored_but_not_in_16(tmp_path):
    write_png(tmp_path / "a.png", uint8([0, 255]))
    write_png(tmp_path / "b.png", np.array([[0, 255]], np.uint16))
    reader = MaskReader(names={0: "sky", 3: "tree"}, table=Path("n.csv"))
    assert reader.classes == ["sky", "tree"]
    mask, white = reader(tmp_path / "a.png")
    assert mask.tolist() == [[0, X]] and white
    with pytest.raises(DataError, match=r"b.png: mask has id 255: .* Add it to n.csv, with an empty name to ignore it"):
        reader(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"a.png: mask has id 255"):  # the flag replaces the default
        MaskReader(names={0: "sky", 3: "tree"}, table=Path("n.csv"), ignore_id=0)(tmp_path / "a.png")


def test_masks_of_all_kinds_give_their_ids(tmp_path):
    path = tmp_path / "m.png"
    ids = uint8([0, 1, 2, 3, 1, 0, 3, 2])
    write_png(path, ids, palette=True)
    assert np.array_equal(pairs.read_ids(path), ids)
    write_png(path, ids, palette=True, bits=2)
    assert np.array_equal(pairs.read_ids(path), ids)
    for bits, most in ((1, 1), (2, 3), (4, 15)):
        rows = [[0, most, 1, 0, most, most, 0, 1], [most, 1, 0, 0, 1, 1, most, 0]]
        write_gray(path, rows, bits)
        assert pairs.read_ids(path).tolist() == rows, bits
    write_png(path, ids)
    assert pairs.read_ids(path).dtype == np.uint8 and np.array_equal(pairs.read_ids(path), ids)
    write_png(path, ids.astype(np.uint16) * 1000)
    assert pairs.read_ids(path).dtype == np.uint16 and np.array_equal(pairs.read_ids(path), ids.astype(int) * 1000)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colored_masks_are_refused(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / "m.png")
    with pytest.raises(
        DataError, match=rf"m.png is a {mode} image of \d channels: expected a mask of one channel.*convert its colors"
    ):
        pairs.read_ids(tmp_path / "m.png")


def test_files_that_are_no_masks(tmp_path):
    path = tmp_path / "m.png"
    with pytest.raises(DataError, match=r"m.png is missing: expected a PNG file"):
        pairs.read_ids(path)
    write_jpeg(path)
    with pytest.raises(DataError, match=r"m.png is not a readable PNG file"):
        pairs.read_ids(path)
    write_png(path, np.random.default_rng(0).integers(0, 255, (50, 50), dtype=np.uint8))
    for size in (20, 60, 1000):
        whole = path.read_bytes()
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"m.png (cannot be decoded|is not a readable PNG file)"):
            pairs.read_ids(path)
        path.write_bytes(whole)


def test_images_that_cannot_be_stored(tmp_path):
    write_png(tmp_path / "deep.png", np.zeros((2, 2), np.uint16))
    with pytest.raises(DataError, match=r"deep.png has 16 bits a channel: expected 8"):
        pairs.read_image(tmp_path / "deep.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.jpg", "GIF")
    with pytest.raises(DataError, match=r"a.jpg is not a readable JPEG or PNG file"):
        pairs.read_image(tmp_path / "a.jpg")


def test_a_mask_of_another_size(tmp_path):
    write_jpeg(tmp_path / "images/a.jpg", 2, 3)
    write_png(tmp_path / "masks/a.png", np.zeros((3, 2), np.uint8))
    write_json(tmp_path / "n.json", ["a", "b"])
    with pytest.raises(DataError, match=r"sample a: mask is \(3, 2\), its image \(2, 3\)"):
        build(tmp_path, masks=tmp_path / "masks", names=tmp_path / "n.json")


def test_images_that_are_to_be_shown_turned(tmp_path):
    """Orientation 6: the stored top row is shown as the right column."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "images/a.jpg"
    path.parent.mkdir()
    Image.fromarray(pixels).save(path, exif=exif)
    assert read_stored(path, exif="ignore") == path.read_bytes()
    turned = np.asarray(Image.open(io.BytesIO(read_stored(path, exif="apply"))))
    assert turned.shape == (32, 16, 3) and turned[:, 9:].min() > 200 and turned[:, :7].max() < 50
    write_png(tmp_path / "masks/a.png", np.ones((32, 16), np.uint8))
    write_json(tmp_path / "n.json", ["a", "b"])
    fields = {"masks": tmp_path / "masks", "names": tmp_path / "n.json"}
    with pytest.raises(DataError, match=r"a.jpg has EXIF data that says to turn it.*--exif apply.*--exif ignore"):
        build(tmp_path, **fields)
    build(tmp_path, **fields, exif="apply")
    assert read_split(tmp_path / "out", "train")["a"][1] == [[1] * 16] * 32
    assert write_jpeg(tmp_path / "plain.jpg") == read_stored(tmp_path / "plain.jpg", exif="apply")


def masked_images(tmp_path, names):
    for name in names:
        write_jpeg(tmp_path / f"images/{name}.jpg", 2, 2)
        write_png(tmp_path / f"masks/{name}.png", uint8([0, 1], [1, 0]))
    write_json(tmp_path / "n.json", ["background", "b"])
    return {"masks": tmp_path / "masks", "names": tmp_path / "n.json"}


def test_a_share_is_set_aside(tmp_path, capsys):
    names = [f"{number:02}" for number in range(20)]
    fields = masked_images(tmp_path, names)
    info = build(tmp_path, **fields, val_fraction=0.2)
    assert info.background == 0
    val = set(read_split(tmp_path / "out", "val"))
    assert len(val) == 4 and set(read_split(tmp_path / "out", "train")) == set(names) - val
    build(tmp_path, **fields, val_fraction=0.2, seed=1)
    other = set(read_split(tmp_path / "out", "val"))
    assert len(other) == 4 and other != val
    build(tmp_path, **fields, val_fraction=0)
    assert (
        list(read_info(tmp_path / "out").splits) == ["train"] and "no images for split val" in capsys.readouterr().out
    )


@pytest.mark.parametrize("masks", ["images", "images/masks"])
def test_masks_among_the_images_are_no_images(tmp_path, masks):
    write_jpeg(tmp_path / "images/a.jpg", 1, 2)
    write_jpeg(tmp_path / "images/._a.jpg", 1, 2)
    write_png(tmp_path / masks / "a.png", uint8([0, 1]))
    write_json(tmp_path / "n.json", ["a", "b"])
    build(tmp_path, masks=tmp_path / masks, names=tmp_path / "n.json")
    samples = read_split(tmp_path / "out", "train")
    assert list(samples) == ["a"] and samples["a"][1] == [[0, 1]]


def test_few_images_still_make_two_splits():
    keys = {f"{number}.jpg": str(number) for number in range(3)}
    for fraction, sizes in ((0.01, (2, 1)), (0.5, (1, 2)), (0.99, (1, 2))):
        splits = divide(keys, fraction, 0)
        assert (len(splits["train"]), len(splits["val"])) == sizes
    assert list(divide({"a": "a"}, 0.5, 0)) == ["train"]


def test_what_is_wrong_with_a_folder(tmp_path):
    fields = masked_images(tmp_path, ["a", "b"])
    (tmp_path / "masks/b.png").unlink()
    with pytest.raises(DataError, match=r"masks/b.png is missing. --masks must hold a PNG for each image"):
        build(tmp_path, **fields)
    write_png(tmp_path / "masks/b.png", uint8([0, 1], [1, 0]))
    write_jpeg(tmp_path / "images/b.jpeg")
    with pytest.raises(DataError, match=r"images b.jpeg and b.jpg would both be sample b: rename one"):
        build(tmp_path, **fields)
    with pytest.raises(DataError, match=r"nowhere is not a folder"):
        build(tmp_path, **{**fields, "masks": tmp_path / "nowhere"})
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"images holds no image: expected files ending in .jpg, .jpeg, .png"):
        build(tmp_path, **fields)
    (tmp_path / "images").rmdir()
    with pytest.raises(DataError, match=r"images is not a folder"):
        build(tmp_path, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either --masks with --names or --annotations"),
        ({"masks": "m", "annotations": "a"}, "either --masks with --names or --annotations"),
        ({"masks": "m"}, "--masks and --names go together"),
        ({"annotations": "a", "names": "n"}, "--masks and --names go together"),
        ({"masks": "m", "names": "n", "unlabeled": "background"}, "unlabeled is for annotations"),
        ({"annotations": "a", "ignore_id": 3}, "ignore_id is for masks"),
        ({"annotations": "a", "val_fraction": 1.0}, "val_fraction = 1.0: expected 0 to below 1"),
        ({"masks": "m", "names": "n", "ignore_id": 70000}, "ignore_id = 70000: expected 0 to 65535"),
        ({"annotations": "a", "annotator": "last"}, "label_field, annotator and region_label are for a PATH"),
        ({"annotations": "a", "shard_size": 0}, "shard_size = 0"),
    ],
)
def test_arguments_that_cannot_work(fields, message):
    with pytest.raises(ValueError, match=message):
        Arguments(images=Path("i"), out="o", **fields)


# Names


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("n.csv", "id,name\n3,sky\n900,tree\n"),
        ("n.csv", "\ufeffname,id,colour\nsky,3,blue\ntree,900,green\n"),
        ("n.csv", 'id,name\r\n3,"sky"\r\n900, tree \r\n'),
        ("n.json", '{"3": "sky", "900": "tree"}'),
        ("n.json", '[{"id": 3, "name": "sky"}, {"id": 900, "name": "tree"}]'),
        ("n.json", '{"categories": [{"id": 3, "name": "sky", "supercategory": "x"}, {"id": 900, "name": "tree"}]}'),
    ],
)
def test_tables_of_names(tmp_path, file, text):
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_names(tmp_path / file) == {3: "sky", 900: "tree"}


@pytest.mark.parametrize(("file", "text"), [("n.csv", "name\nsky\n\ntree\n"), ("n.json", '["sky", "tree"]')])
def test_names_without_ids_count_from_0(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    assert read_names(tmp_path / file) == {0: "sky", 1: "tree"}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("n.csv", "", "has 0 classes: expected at least 2"),
        ("n.csv", "sky\ntree\n", "not a table of class names .*name"),
        ("n.csv", "id,name\n1,sky\nx,tree\n", "not a table of class names"),
        ("n.csv", "id,name\n1,sky\n1,tree\n", "has an id twice"),
        ("n.csv", "id,name\n1,sky\n2,sky\n", "has the name 'sky' twice"),
        ("n.csv", "id,name\n1,sky\n-2,tree\n", "ids from 0 to 65534"),
        ("n.csv", "id,name\n1,sky\n65535,tree\n", "ids from 0 to 65534"),
        ("n.csv", "id,name\n1,sky\n2\n", "not a table of class names"),
        ("n.json", "{", "not a table of class names"),
        ("n.json", "3", "not a table of class names"),
        ("n.json", '{"a": "b"}', "not a table of class names"),
    ],
)
def test_tables_that_are_something_else(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=rf"{file} .*{message}|{file} {message}"):
        read_names(tmp_path / file)
    with pytest.raises(DataError, match=r"no.csv is missing"):
        read_names(tmp_path / "no.csv")


# Annotations


def coco(names, annotations, key="file_name"):
    return {
        "images": [{"id": number, "height": 2, "width": 4, key: name} for number, name in enumerate(names)],
        "annotations": [
            {"image_id": image, "category_id": category, "segmentation": segmentation}
            for image, category, segmentation in annotations
        ],
        "categories": [{"id": 900, "name": "tree"}, {"id": 3, "name": "sky"}],
    }


LEFT = [[0, 0, 2, 0, 2, 2, 0, 2]]
FIRST_ROW = {"size": [2, 4], "counts": [0, 1, 1, 1, 1, 1, 1, 1, 1]}


def test_annotations_by_command(tmp_path):
    for name in ("a/one.jpg", "two.jpg", "three.jpg"):
        write_jpeg(tmp_path / "images" / name, 2, 4)
    write_json(tmp_path / "i.json", coco(["a/one.jpg", "two.jpg", "three.jpg"], [(0, 900, LEFT), (0, 3, FIRST_ROW)]))
    options = ["--images", tmp_path / "images", "--annotations", tmp_path / "i.json", "--val-fraction", "0.34"]
    done = command(*options, "--out", tmp_path / "out", "--processes", "1")
    assert done.returncode == 0, done.stderr
    info = read_info(tmp_path / "out")
    assert info.classes == ["sky", "tree"] and info.background is None
    assert (info.num_samples("train"), info.num_samples("val")) == (2, 1)
    samples = read_split(tmp_path / "out", "train") | read_split(tmp_path / "out", "val")
    assert samples["a_one"][1] == [[0, 0, 0, 0], [1, 1, X, X]], "of two of four pixels the later one is on top"
    build(tmp_path, annotations=tmp_path / "i.json", val_fraction=0.34, overlap="first")
    first = read_split(tmp_path / "out", "train") | read_split(tmp_path / "out", "val")
    assert first["a_one"][1] == [[1, 1, 0, 0], [1, 1, X, X]]
    assert samples["two"][1] == samples["three"][1] == [[X] * 4] * 2
    assert samples["a_one"][0] == (tmp_path / "images/a/one.jpg").read_bytes()
    assert (tmp_path / "kiloseg/i-train.parquet").is_file()


def test_pixels_outside_all_annotations_as_background(tmp_path):
    write_jpeg(tmp_path / "images/a.jpg", 2, 4)
    write_json(tmp_path / "i.json", coco(["a.jpg"], [(0, 900, LEFT)]))
    info = build(tmp_path, annotations=tmp_path / "i.json", unlabeled="background")
    assert info.classes == ["background", "sky", "tree"] and info.background == 0
    assert read_split(tmp_path / "out", "train")["a"][1] == [[2, 2, 0, 0]] * 2
    build(tmp_path, annotations=tmp_path / "i.json")  # the store of the other setting is not taken for this one's
    assert read_split(tmp_path / "out", "train")["a"][1] == [[1, 1, X, X]] * 2


@pytest.mark.parametrize("subfolders", [True, False])
def test_a_json_for_each_split(tmp_path, subfolders, capsys):
    for split in ("train", "val"):
        write_jpeg(tmp_path / "images" / (split if subfolders else "") / f"{split[0]}.jpg", 2, 4)
        write_json(tmp_path / f"jsons/{split}.json", coco([f"{split[0]}.jpg"], [(0, 3, LEFT)]))
    build(tmp_path, annotations=tmp_path / "jsons")
    keys = {split: next(iter(read_split(tmp_path / "out", split))) for split in ("train", "val")}
    assert keys == ({"train": "train_t", "val": "val_v"} if subfolders else {"train": "t", "val": "v"})
    (tmp_path / "jsons/val.json").unlink()
    assert list(build(tmp_path, annotations=tmp_path / "jsons").splits) == ["train"]
    assert "val.json does not exist, so there will be no split val" in capsys.readouterr().out


def test_splits_by_the_folders_in_one_json(tmp_path):
    names = ["train/a.jpg", "val/a.jpg", "val/b.jpg"]
    for name in names:
        write_jpeg(tmp_path / "images" / name, 2, 4)
    write_json(tmp_path / "i.json", coco([f"http://x/{name}" for name in names], [(1, 3, LEFT)], key="coco_url"))
    build(tmp_path, annotations=tmp_path / "i.json")
    assert set(read_split(tmp_path / "out", "train")) == {"train_a"}
    val = read_split(tmp_path / "out", "val")
    assert set(val) == {"val_a", "val_b"} and val["val_a"][1] == [[0, 0, X, X]] * 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["images"][0].update(file_name="../c.jpg"), r"image 0 has file_name '../c.jpg'"),
        (lambda c: c["images"][0].update(file_name="/c.jpg"), r"image 0 has file_name '/c.jpg'"),
        (lambda c: c["images"][0].update(file_name=""), r"image 0 has file_name ''"),
        (lambda c: c["images"][0].update(file_name="b.jpg"), r"images/b.jpg is missing. --images must hold"),
        (lambda c: c["images"][0].update(height=3), r"sample a: mask is \(3, 4\), its image \(2, 4\)"),
        (lambda c: c["annotations"][0].update(category_id=4), r"image a.jpg has category 4, which is not listed"),
        (lambda c: c["categories"][0].update(name="sky"), r"each id and name once"),
        (lambda c: c["categories"].clear(), r"has 0 categories"),
        (lambda c: [c["images"].clear(), c["annotations"].clear()], r"i.json lists no images"),
        (lambda c: c["images"].append({**c["images"][0], "id": 7}), r"would both be sample a"),
    ],
)
def test_annotations_that_do_not_fit(tmp_path, edit, message):
    write_jpeg(tmp_path / "images/a.jpg", 2, 4)
    content = coco(["a.jpg"], [(0, 3, LEFT)])
    edit(content)
    write_json(tmp_path / "i.json", content)
    with pytest.raises(DataError, match=message):
        build(tmp_path, annotations=tmp_path / "i.json")


def test_two_jsons_have_the_same_categories(tmp_path):
    write_jpeg(tmp_path / "images/a.jpg", 2, 4)
    write_json(tmp_path / "jsons/train.json", coco(["a.jpg"], []))
    write_json(tmp_path / "jsons/val.json", {**coco([], []), "categories": [{"id": 3, "name": "sky"}]})
    with pytest.raises(DataError, match=r"train.json and .*val.json have different categories"):
        build(tmp_path, annotations=tmp_path / "jsons")
    with pytest.raises(DataError, match=r"holds neither train.json nor val.json"):
        build(tmp_path, annotations=tmp_path / "images")
    with pytest.raises(DataError, match=r"none.json is missing"):
        build(tmp_path, annotations=tmp_path / "none.json")
