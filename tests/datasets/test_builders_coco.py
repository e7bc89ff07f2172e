"""coco_lvis on a tiny tree in the layout of COCO and LVIS; json, store and drawing of its annotations."""

import contextlib
import io
import json
import re

import numpy as np
import pycocotools.mask
import pytest
from damage import built_again_as_verify_says
from pycocotools.coco import COCO
from trees import IGNORE, read_split, write_jpeg, write_json

import coco_lvis
from common import annotation_store, coco_json, label_table, polygons, regions
from common.annotation_store import AnnotatedImage
from kiloseg.data.description import read_info
from kiloseg.data.index import class_samples, read_index
from kiloseg.storage.errors import DataError

X = IGNORE
HEIGHT, WIDTH = 4, 6


def build(root, out, **fields):
    return coco_lvis.build_coco_lvis(coco_lvis.Arguments(root=root, out=str(out), processes=1, **fields))


def box(left, top, right, bottom):
    """A polygon whose pixels are columns left to right - 1 and rows top to bottom - 1."""
    return [left, top, right, top, right, bottom, left, bottom]


def compressed(*rows):
    """COCO's compressed RLE of a mask, as its stuff json has it."""
    rle = pycocotools.mask.encode(np.asfortranarray(rows, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


CATEGORIES = [{"id": number, "name": f"c{number}", "synset": "s"} for number in range(1, 1204)]


def lvis(images, annotations):
    """`images`: id to folder; `annotations`: (image id, category id, segmentation)."""
    return {
        "info": {},
        "images": [
            {
                "id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "coco_url": f"http://images.cocodataset.org/{folder}/{image_id:012}.jpg",
                "not_exhaustive_category_ids": [3],
            }
            for image_id, folder in images.items()
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "area": 1.5}
            for number, (image, category, segmentation) in enumerate(annotations)
        ],
        "categories": CATEGORIES,
    }


def stuff(images, annotations):
    content = lvis(dict.fromkeys(images, "x"), annotations)
    for image in content["images"]:
        image["file_name"] = image.pop("coco_url").rpartition("/")[2]
    return {**content, "categories": [{"id": number, "name": "n"} for number in range(92, 184)]}


TOP = compressed([1] * 6, [1] * 6, [0] * 6, [0] * 6)
BOTTOM = compressed([0] * 6, [0] * 6, [1] * 6, [0] * 6)
"""Row 2 alone: row 3 has no stuff."""


@pytest.fixture
def root(tmp_path):
    """Train has 9 and, without annotations, 25; val has 30 of train2017 and 42 of val2017."""
    root = tmp_path / "archives"
    for image_id, folder in ((9, "train2017"), (25, "train2017"), (30, "train2017"), (42, "val2017")):
        write_jpeg(root / folder / f"{image_id:012}.jpg", HEIGHT, WIDTH, gray=image_id == 42)
    write_json(
        root / "annotations/lvis_v1_train.json",
        lvis(
            {25: "train2017", 9: "train2017"},
            [
                (9, 1203, [box(0, 0, 2, 1)]),  # class 1202
                (9, 256, [box(1, 0, 4, 2), box(5, 3, 6, 4)]),  # class 255, below 1202 at column 1; two parts
                (9, 257, [box(3, 1, 5, 3)]),  # class 256, below 255 at column 3 of row 1
                (9, 1, [box(0, 3, 1, 4)]),  # class 0
            ],
        ),
    )
    write_json(
        root / "annotations/lvis_v1_val.json",
        lvis({30: "train2017", 42: "val2017"}, [(42, 181, [box(0, 0, 1, 4)]), (30, 181, [box(5, 0, 6, 1)])]),
    )
    write_json(
        root / "annotations/stuff_train2017.json",
        stuff(
            [9, 25, 30],
            [
                (30, 98, TOP),  # cabinet, class 180 as the object 181 of LVIS
                (9, 94, TOP),  # branch, class 1203
                (9, 182, BOTTOM),  # wood, class 1283: the last
                (9, 183, compressed([0] * 6, [0] * 6, [0] * 6, [1] * 6)),  # other: ignored
                (30, 93, BOTTOM),  # blanket, class 109
            ],
        ),
    )
    write_json(root / "annotations/stuff_val2017.json", stuff([42], [(42, 110, TOP), (42, 181, BOTTOM)]))
    return root


def test_masks_worked_out_by_hand(root, tmp_path):
    info = build(root, tmp_path / "out")
    assert info.num_classes == 1284 and info.background is None
    assert (info.classes[0], info.classes[1202], info.classes[1203], info.classes[1283]) == (
        "aerosol_can",
        "zucchini",
        "branch",
        "wood",
    )
    train, val = (read_split(tmp_path / "out", split) for split in ("train", "val"))
    assert train["000000000009"][1] == [
        [1202, 1202, 255, 255, 1203, 1203],
        [1203, 255, 255, 255, 256, 1203],
        [1283, 1283, 1283, 256, 256, 1283],
        [0, X, X, X, X, 255],
    ]
    assert train["000000000025"][1] == [[X] * 6] * 4
    assert val["000000000030"][1] == [[180] * 6, [180] * 6, [109] * 6, [X] * 6]
    # 110 is desk-stuff, 181 window-other.
    assert val["000000000042"][1] == [[180] + [1216] * 5, [180] + [1216] * 5, [180] + [1282] * 5, [180] + [X] * 5]
    assert set(train) == {"000000000009", "000000000025"} and set(val) == {"000000000030", "000000000042"}
    for key, (image, _, meta) in (train | val).items():
        folder = "val2017" if key.endswith("42") else "train2017"
        assert meta["image"] == f"{folder}/{key}.jpg" and image == (root / meta["image"]).read_bytes()
    counts = class_samples(read_index(tmp_path / "out", "train"), 1284)
    assert np.flatnonzero(counts).tolist() == [0, 255, 256, 1202, 1203, 1283]
    row = next(row for row in read_index(tmp_path / "out", "train").to_pylist() if row["key"].endswith("9"))
    pixels = {0: 1, 255: 6, 256: 3, 1202: 2, 1203: 4, 1283: 4}
    assert dict(zip(row["class_ids"], row["class_pixels"], strict=True)) == pixels


def test_official_chaining(root, tmp_path):
    """98 -> 181 -> 1283 and 93 -> 110 -> 1217, counted from 1; everything else is the same."""
    right, chained = coco_lvis.stuff_class_ids(False), coco_lvis.stuff_class_ids(True)
    assert {
        stuff_id: (right[stuff_id] + 1, chained[stuff_id] + 1)
        for stuff_id in right
        if right[stuff_id] != chained[stuff_id]
    } == {
        98: (181, 1283),
        93: (110, 1217),
    }
    # As the official code does it, on a mask that holds every id once.
    mask = np.arange(92, 183)
    for stuff_id in range(92, 183):
        mask[mask == stuff_id] = right[stuff_id] + 1
    assert (mask - 1).tolist() == [chained[stuff_id] for stuff_id in range(92, 183)]
    assert sorted(right) == list(range(92, 183)) and len(set(right.values())) == 91
    plain, official = (build(root, tmp_path / name, official_chaining=name == "b") for name in "ab")
    assert plain.digest != official.digest and "--official-chaining" in official.command
    val = read_split(tmp_path / "b", "val")
    assert val["000000000030"][1] == [[1282] * 5 + [180], [1282] * 6, [1216] * 6, [X] * 6]  # the object stays
    assert read_split(tmp_path / "b", "train") == read_split(tmp_path / "a", "train")


def test_merged_classes_have_the_names_of_lvis():
    names = {int(row["class_id"]): row["name"] for row in label_table.read_table("coco_lvis_1284")}
    merged = [row for row in label_table.read_table("coco_stuff_to_1284") if row["merged_with_lvis"] == "1"]
    assert len(merged) == 10 and all(int(row["class_id"]) < 1203 for row in merged)
    for row in label_table.read_table("coco_stuff_to_1284"):
        assert names[int(row["class_id"])].partition("_(")[0].replace("_", "-") == row["name"].replace("_", "-")


def test_annotations_are_sorted_once(root, tmp_path, capsys):
    build(root, tmp_path / "a")
    stores = sorted((root / "annotations/kiloseg").iterdir())
    assert [store.name for store in stores] == ["coco_lvis-train.parquet", "coco_lvis-val.parquet"]
    times = [store.stat().st_mtime_ns for store in stores]
    assert "sorting the annotations of train and val" in capsys.readouterr().out
    build(root, tmp_path / "b")
    assert [store.stat().st_mtime_ns for store in stores] == times
    assert "sorting" not in capsys.readouterr().out
    path = root / "annotations/lvis_v1_val.json"
    content = json.loads(path.read_text())
    content["annotations"].clear()
    write_json(path, content)
    build(root, tmp_path / "b", index=tmp_path / "index")
    assert (tmp_path / "index/coco_lvis-val.parquet").is_file()
    assert read_split(tmp_path / "b", "val")["000000000030"][1][0] == [180] * 6
    build(root, tmp_path / "c")
    assert [store.stat().st_mtime_ns == time for store, time in zip(stores, times, strict=True)] == [True, False]
    assert (
        "sorting the annotations of val by" in capsys.readouterr().out.rpartition("sorting the annotations of train")[2]
    )


def test_a_store_that_was_cut_off_is_made_again(root):
    folder = root / "annotations/kiloseg"
    coco_lvis.index_annotations(root, folder, False)
    for damage in (b"", (folder / "coco_lvis-train.parquet").read_bytes()[:-9]):
        (folder / "coco_lvis-train.parquet").write_bytes(damage)
        store, recipe = coco_lvis.index_annotations(root, folder, False)["train"]
        assert annotation_store.is_current(store, recipe) and annotation_store.num_images(store) == 2


def test_one_split_alone(root, tmp_path, capsys):
    for name in ("lvis_v1_val.json", "stuff_val2017.json"):
        (root / "annotations" / name).unlink()
    (root / "val2017").rename(tmp_path / "elsewhere")
    assert list(build(root, tmp_path / "out").splits) == ["train"]
    printed = capsys.readouterr().out
    assert "lvis_v1_val.json does not exist, so there will be no split val" in printed
    assert "warning: coco_lvis train has 2 samples here, but 100,170 were published" in printed


def change(root, name, edit):
    path = root / "annotations" / name
    content = json.loads(path.read_text())
    edit(content)
    write_json(path, content)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("lvis_v1_train.json", lambda c: c["categories"].append({"id": 1230, "name": "n"}), r"1,204 categories: expected LVIS v1"),
        ("lvis_v1_train.json", lambda c: c["annotations"][0].update(category_id=0), r"image 9 has category 0: expected 1 to 1203"),
        ("stuff_train2017.json", lambda c: c["annotations"][0].update(category_id=91), r"30 has category 91: .* 92 to 183"),
        ("stuff_val2017.json", lambda c: [c["images"].clear(), c["annotations"].clear()], r"has image 42, which .* do not list"),
        ("lvis_v1_train.json", lambda c: c["annotations"][0].update(image_id=8), r"annotations of image 8, which it does not list"),
        ("lvis_v1_train.json", lambda c: c["images"].append(c["images"][0]), r"lists an image id twice"),
        ("lvis_v1_train.json", lambda c: c["annotations"][1].pop("image_id"), r"required field `image_id` - at `\$.annotations"),
        ("lvis_v1_train.json", lambda c: c.pop("images"), r"not an annotation file in COCO's JSON format .*`images`"),
        ("lvis_v1_train.json", lambda c: c["images"][1].update(coco_url=""), r"9 has coco_url .*ends in train2017 or"),
        ("lvis_v1_train.json", lambda c: c["annotations"][0].update(segmentation=[["a"] * 6]), r"009.jpg: .* class 1202"),
        ("stuff_train2017.json", lambda c: c["annotations"][1]["segmentation"].update(size=[6, 4]), r"RLE of size \[6, 4\]"),
        ("stuff_train2017.json", lambda c: c["annotations"][1].pop("segmentation"), r"neither polygons nor RLE"),
    ],
)  # fmt: skip
def test_annotations_that_are_something_else(root, tmp_path, name, edit, message):
    change(root, name, edit)
    with pytest.raises(DataError, match=message):
        build(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train2017/000000000009.jpg", r"train2017/000000000009.jpg is missing. --root must hold train2017"),
        ("annotations/stuff_train2017.json", r"has image \d+, which .*stuff_val2017.json do not list"),
    ],
)
def test_files_that_are_missing(root, tmp_path, name, message):
    (root / name).unlink()
    with pytest.raises(DataError, match=message):
        build(root, tmp_path / "out")


def test_neither_stuff_nor_a_place_to_write(root, tmp_path):
    for name in ("stuff_train2017.json", "stuff_val2017.json"):
        (root / "annotations" / name).rename(tmp_path / name)
    with pytest.raises(DataError, match=r"stuff_train2017.json is missing: expected stuff annotations beside those"):
        build(root, tmp_path / "out")
    for name in ("stuff_train2017.json", "stuff_val2017.json"):
        (tmp_path / name).rename(root / "annotations" / name)
    (root / "annotations/kiloseg").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"kiloseg.* cannot be written .*--index"):
        build(root, tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"images": 3}', "\x00" * 50])
def test_files_that_are_no_annotations(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a.json is not an annotation file in COCO's JSON format"):
        coco_json.CocoJson(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"b.json is missing"):
        coco_json.CocoJson(tmp_path / "b.json")


def test_annotations_come_in_the_order_of_the_file(tmp_path):
    ids = [7, 3, 7, 7, 3, 9, 7]
    write_json(
        tmp_path / "a.json",
        lvis({3: "a", 5: "a", 7: "a", 9: "a"}, [(image, number + 1, []) for number, image in enumerate(ids)]),
    )
    content = coco_json.CocoJson(tmp_path / "a.json")
    found = {image: [annotation.category_id for annotation in content.annotations(image)] for image in content.images}
    assert found == {3: [2, 5], 5: [], 7: [1, 3, 4, 7], 9: [6]}


def test_a_store_is_read_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation_store, "GROUP", 4)
    images = [AnnotatedImage(f"k{number}", f"{number}.jpg", 3, 4, [number], [b"[]"]) for number in range(11)]
    annotation_store.write_store(tmp_path / "a" / "s.parquet", {"a": [1]}, images, ["x"])
    for start, stop in ((0, 11), (0, 4), (3, 5), (4, 8), (5, 6), (8, 11), (10, 11)):
        assert list(annotation_store.read_store(tmp_path / "a" / "s.parquet", start, stop)) == images[start:stop]
    assert annotation_store.is_current(tmp_path / "a" / "s.parquet", {"a": [1]})
    assert not annotation_store.is_current(tmp_path / "a" / "s.parquet", {"a": [2]})
    assert annotation_store.read_classes(tmp_path / "a" / "s.parquet") == ["x"]


def annotated(*items, height=HEIGHT, width=WIDTH):
    return AnnotatedImage(
        "k", "k.jpg", height, width, [c for c, _ in items], [json.dumps(s).encode() for _, s in items]
    )


@pytest.mark.parametrize(
    "segmentation",
    [
        [box(1, 1, 3, 3)],
        {"size": [4, 6], "counts": [5, 2, 2, 2, 13]},
        compressed([0] * 6, [0, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0] * 6),
        [box(1, 1, 3, 2), box(1, 2, 3, 3), [0, 0, 5, 3]],
    ],
    ids=["polygon", "counts", "compressed", "parts, one of which is a line"],
)
def test_all_forms_of_a_region(segmentation):
    assert regions.draw_regions(annotated((70, segmentation)), empty=3).tolist() == [
        [3] * 6,
        [3, 70, 70, 3, 3, 3],
        [3, 70, 70, 3, 3, 3],
        [3] * 6,
    ]


@pytest.mark.parametrize("segmentation", [[], [[]], [[1, 2, 3, 4]], {"size": [4, 6], "counts": [24]}])
def test_regions_without_pixels(segmentation):
    assert regions.draw_regions(annotated((7, segmentation))).tolist() == [[X] * 6] * 4


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "neither polygons nor RLE"),
        ([1, 2, 3, 4, 5, 6], "not a list of alternating x and y"),
        ([[1, 2, 3, 4, 5, 6, 7]], "not a list of alternating x and y"),
        ({"size": [4, 6], "counts": [5, 2]}, "add up to 7, its image has 24"),
        ({"size": [4, 6], "counts": [30, -6]}, "RLE counts"),
        ({"size": [4, 6], "counts": "zzzzzzzzzzzz"}, "Invalid RLE"),
        ({"size": [4, 6]}, "counts"),
        ({"counts": [24]}, "size"),
    ],
)
def test_regions_that_cannot_be_drawn(segmentation, message):
    with pytest.raises(DataError, match=rf"k.jpg: a segmentation of class 7 cannot be drawn.*{message}"):
        regions.draw_regions(annotated((7, segmentation)))


def test_drawing_agrees_with_pycocotools(tmp_path):
    """Ragged polygons at all places, also beyond the edges, against COCO.annToMask and a loop over annotations."""
    rng = np.random.default_rng(0)
    height, width = 60, 80
    annotations = []
    for number in range(200):
        center, radius = rng.uniform(-5, [width + 5, height + 5]), rng.uniform(1, 30)
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 12)))
        points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        segmentation = [points.round(rng.integers(0, 4)).ravel().tolist()]
        if number % 3 == 0:
            segmentation.append(box(*rng.integers(0, 10, 2).tolist(), *rng.integers(11, 60, 2).tolist()))
        annotations.append((1 + number % 8, 1 + number, segmentation))
    content = lvis(dict.fromkeys(range(1, 9), "a"), annotations)
    for image in content["images"]:
        image.update(height=height, width=width)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    write_json(tmp_path / "a.json", content)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(tmp_path / "a.json")
    ours = coco_json.CocoJson(tmp_path / "a.json")
    covered = set()
    for image_id in range(1, 9):
        expected = np.full((height, width), X)
        for annotation in reference.loadAnns(reference.getAnnIds(imgIds=image_id)):
            free = (expected == X) & (reference.annToMask(annotation) > 0)
            expected[free] = annotation["category_id"]
        items = list(ours.annotations(image_id))
        image = AnnotatedImage(
            "k", "k", height, width, [a.category_id for a in items], [bytes(a.segmentation) for a in items]
        )
        assert np.array_equal(regions.draw_regions(image), expected)
        covered |= set(np.unique(expected))
    assert len(covered) > 100


def test_only_what_is_needed_of_a_polygon_is_drawn():
    (rle,) = polygons.to_rles(b"[[2.0, 1, 7.9, 1, 7.9, 5]]", 10, 640)
    assert rle["size"] == [10, 9]
    assert re.match(r"\[10, 640\]", str(polygons.to_rles(b"[[2, 1, 900, 1, 7, 5]]", 10, 640)[0]["size"]))


@pytest.mark.parametrize("overlap", ["first", "last", "smallest"])
def test_drawing_that_counts_gives_the_same_pixels(overlap):
    """Small regions are written pixel by pixel, large ones by pycocotools' decoder: against that decoder alone."""
    rng = np.random.default_rng(1)
    items = []
    for number in range(300):
        center, radius = rng.uniform(-10, [410, 310]), np.exp(rng.uniform(0, 5))
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        points = center + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        items.append((number % 7, [points.round(2).ravel().tolist()]))
    image = annotated(*items, height=300, width=400)
    mask, counts = regions.draw_counted(image, 9, overlap)
    assert np.array_equal(mask, regions.draw_regions(image, 9, overlap)) and set(range(7)) <= set(
        np.unique(mask).tolist()
    )
    assert counts["objects_hidden"] > 10 and counts["regions_without_shape"] == 0


def test_damaged_data_set_is_built_again_as_verify_says(root, tmp_path, capsys):
    build(root, tmp_path / "my data")
    built_again_as_verify_says(tmp_path / "my data", capsys, tmp_path)


def test_damaged_annotations_are_named_and_made_again(root, tmp_path):
    build(root, tmp_path / "a")
    store = root / "annotations/kiloseg/coco_lvis-train.parquet"
    content = bytearray(store.read_bytes())
    for place in range(4, 100):  # the footer, at the end, stays whole
        content[place] ^= 255
    store.write_bytes(content)
    with pytest.raises(
        DataError, match=r"coco_lvis-train.parquet is damaged .*delete it, and the same command makes it"
    ):
        build(root, tmp_path / "b")
    store.unlink()
    assert build(root, tmp_path / "b").digest == read_info(tmp_path / "a").digest
