"""Panoptic COCO, Parquet of the Hugging Face Hub, masks of Open Images, lists of images and tiles, on tiny trees."""

import io
import itertools
import json
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from damage import built_again_as_verify_says
from exports import build
from PIL import Image
from trees import IGNORE, read_split, uint8, write_jpeg, write_json, write_png, write_text

import folder
from common.class_names import read_name_table, voc_color
from common.tiles import grid
from folders import parquet
from folders.arguments import Arguments
from kiloseg.data.description import read_info
from kiloseg.data.index import read_index
from kiloseg.storage.errors import DataError

X = IGNORE


def split(tmp_path, name="train"):
    return {key: sample[1] for key, sample in read_split(tmp_path / "out", name).items()}


# Panoptic COCO


def colors_of(rows):
    """A panoptic PNG's pixels of ids, red lowest."""
    ids = np.array(rows)
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


CAT, DOG = 70_000, 3  # ids of segments
CATEGORIES = [
    {"id": 200, "name": "sky-other", "isthing": 0, "color": [1, 2, 3]},
    {"id": 18, "name": "dog", "isthing": 1, "supercategory": "animal"},
    {"id": 17, "name": "cat", "isthing": 1},
]


def panoptic(root, name, rows=((0, CAT, DOG), (255, 255, 0)), segments=((CAT, 17), (DOG, 18), (255, 200))):
    write_jpeg(root / f"{name}/1.jpg", len(rows), len(rows[0]))
    write_png(root / f"annotations/panoptic_{name}/1.png", colors_of(rows))
    infos = [
        {"id": n, "category_id": category, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]} for n, category in segments
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": len(rows), "width": len(rows[0])}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": infos}],
        "categories": CATEGORIES,
    }
    write_json(root / f"annotations/panoptic_{name}.json", content)


def test_panoptic_coco(tmp_path):
    root = tmp_path / "coco"
    for name in ("train2017", "val2017"):
        panoptic(root, name)
    info = build(tmp_path, root)
    assert info.classes == ["cat", "dog", "sky-other"] and info.background is None
    assert split(tmp_path) == {"train2017_1": [[X, 0, 1], [2, 2, X]]}
    assert split(tmp_path, "val") == {"val2017_1": [[X, 0, 1], [2, 2, X]]}
    info = build(tmp_path, root, unlabeled="background")
    assert info.classes == ["background", "cat", "dog", "sky-other"] and info.background == 0
    assert split(tmp_path) == {"train2017_1": [[0, 1, 2], [3, 3, 0]]}
    build(tmp_path, root, unlabeled="background")  # an edited json is read again, though no PNG changed
    panoptic(root, "train2017", segments=((CAT, 18), (DOG, 18), (255, 200)))
    build(tmp_path, root)
    assert split(tmp_path) == {"train2017_1": [[X, 1, 1], [2, 2, X]]}


def test_panoptic_coco_that_cannot_be(tmp_path):
    panoptic(tmp_path / "a", "train2017", segments=((CAT, 17), (255, 200)))
    with pytest.raises(DataError, match=r"1.png: segment 3 covers 1 pixels .* does not list it under segments_info"):
        build(tmp_path, tmp_path / "a")
    panoptic(tmp_path / "b", "train2017", segments=((CAT, 17), (DOG, 5), (255, 200)))
    with pytest.raises(DataError, match=r"image 1 has category 5, which is not listed"):
        build(tmp_path, tmp_path / "b")
    panoptic(tmp_path / "c", "train2017")
    (tmp_path / "c/annotations/panoptic_train2017/1.png").unlink()
    with pytest.raises(DataError, match=r"image 1 has its segments in '1.png', which exists 0 times"):
        build(tmp_path, tmp_path / "c")
    panoptic(tmp_path / "d", "train2017")
    write_png(tmp_path / "d/annotations/panoptic_train2017/1.png", uint8([0, 3, 3], [0, 0, 0]))
    with pytest.raises(DataError, match=r"1.png is a L image: expected a panoptic PNG"):
        build(tmp_path, tmp_path / "d")


def test_panoptic_beside_instances_asks(tmp_path):
    root = tmp_path / "coco"
    panoptic(root, "train2017")
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 2, "width": 3}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 17, "segmentation": [[0, 0, 3, 0, 3, 2, 0, 2]]}],
        "categories": CATEGORIES,
    }
    write_json(root / "annotations/instances_train2017.json", content)
    with pytest.raises(DataError, match=r"can be read as coco or as panoptic: choose one with --format coco"):
        build(tmp_path, root)
    build(tmp_path, root, format="panoptic")
    assert split(tmp_path) == {"train2017_1": [[X, 0, 1], [2, 2, X]]}
    build(tmp_path, root, format="coco")
    assert split(tmp_path) == {"train2017_1": [[0] * 3] * 2}


# Parquet of the Hugging Face Hub


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, kind)
    return buffer.getvalue()


def photo(number, height=2, width=3):
    return encoded(np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8), "JPEG")


def hub(path, masks, *, images="image", labels="label", features=True, group=2, **more):
    """Writes a file as datasets does: a struct of bytes and path, and the features in the metadata of the schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        images: [{"bytes": photo(n), "path": f"{n}.jpg"} for n in range(len(masks))],
        labels: [
            mask if mask is None or isinstance(mask, list) else {"bytes": encoded(mask), "path": None} for mask in masks
        ],
        **more,
    }
    table = pyarrow.table(columns)
    if features:
        info = {name: {"_type": "Image"} for name in (images, labels)} | {"n": {"dtype": "int32", "_type": "Value"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": info}})})
    pyarrow.parquet.write_table(table, path, row_group_size=group)


MASKS = [uint8([n % 3, 0, 255], [1, 1, 2]) for n in range(5)]
EXPECTED = [[[n % 3, 0, X], [1, 1, 2]] for n in range(5)]


@pytest.mark.parametrize("features", [True, False])
def test_parquet_of_the_hub(tmp_path, features):
    root = tmp_path / "set"
    hub(root / "data/train-00000-of-00001-0a1b.parquet", MASKS, features=features)
    hub(root / "data/validation-00000-of-00001.parquet", MASKS[:2], features=features)
    hub(root / "data/test-00000-of-00001.parquet", MASKS[:1], features=features)
    write_json(root / "id2label.json", {"0": "road", "1": "sky", "2": "tree"})
    info = build(tmp_path, root)
    assert info.classes == ["road", "sky", "tree"] and list(info.splits) == ["train", "val"]
    found = split(tmp_path)
    assert [found[f"data_train-00000-of-00001-0a1b-{n:07d}"] for n in range(5)] == EXPECTED and len(found) == 5
    assert list(split(tmp_path, "val").values()) == EXPECTED[:2]
    sample = read_split(tmp_path / "out", "train")["data_train-00000-of-00001-0a1b-0000003"]
    assert sample[0] == photo(3) and sample[2]["row"] == 3 and sample[2]["image"] == "3.jpg"


def test_parquet_without_splits_is_divided_and_groups_stay_together(tmp_path):
    root = tmp_path / "set"
    hub(root / "0000.parquet", MASKS * 4, group=4)
    write_json(root / "id2label.json", ["road", "sky", "tree"])
    build(tmp_path, root, val_fraction=0.25)
    train, val = split(tmp_path), split(tmp_path, "val")
    assert len(train) == 15 and len(val) == 5 and not train.keys() & val.keys()
    assert all(mask == EXPECTED[int(key[-7:]) % 5] for key, mask in (train | val).items())
    groups = [int(key[-7:]) // 4 for key in train]
    assert sum(one != other for one, other in itertools.pairwise(groups)) == len(set(groups)) - 1


def test_parquet_of_local_files_and_lists(tmp_path):
    root = tmp_path / "set"
    for n in range(2):
        write_jpeg(root / f"photos/{n}.jpg", 2, 3)
    table = pyarrow.table(
        {
            "pixel_values": [{"bytes": None, "path": f"/home/me/set/photos/{n}.jpg"} for n in range(2)],
            "labels": [MASKS[n].tolist() for n in range(2)],
        }
    )
    pyarrow.parquet.write_table(table, root / "train.parquet")
    write_json(root / "id2label.json", {"0": "road", "1": "sky", "2": "tree", "255": ""})
    build(tmp_path, root, columns=("pixel_values", "labels"))
    assert list(split(tmp_path).values()) == EXPECTED[:2]


def test_parquet_that_cannot_be(tmp_path):
    root = tmp_path / "set"
    write_json(root / "id2label.json", ["road", "sky", "tree"])
    hub(root / "train.parquet", MASKS, images="left", labels="right")
    with pytest.raises(DataError, match=r"columns left, right, which do not tell .*--columns IMAGE MASK"):
        build(tmp_path, root)
    build(tmp_path, root, columns=("left", "right"))
    hub(root / "train.parquet", [*MASKS[:3], None])
    with pytest.raises(DataError, match=r"train.parquet: row 3 has no image in column label"):
        build(tmp_path, root)
    hub(root / "train.parquet", [*MASKS[:3], uint8([0, 1])])
    with pytest.raises(DataError, match=r"sample train-0000003: mask is \(1, 2\), its image \(2, 3\)"):
        build(tmp_path, root)
    hub(root / "train.parquet", MASKS)
    hub(root / "more.parquet", MASKS)
    with pytest.raises(
        DataError, match=r"more.parquet: nothing tells which split it is, though other files are of train"
    ):
        build(tmp_path, root)
    (root / "more.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(DataError, match=r"more.parquet is not a complete Parquet file .*pointer of Git LFS"):
        build(tmp_path, root)


def test_rows_of_parquet_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    """A group of 64 rows is read in batches of 16; rows behind the last that is wanted are not."""
    hub(tmp_path / "train.parquet", MASKS * 13, group=65)
    seen = []
    read = pyarrow.parquet.ParquetFile.iter_batches

    def watched(self, **given):
        for batch in read(self, **given):
            seen.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", watched)
    write_json(tmp_path / "id2label.json", ["road", "sky", "tree"])
    source = parquet.parquet_source(tmp_path, ["train.parquet"], tmp_path / "id2label.json", {}, ())
    assert len(source.splits["train"]) == 65
    build(tmp_path, tmp_path / "train.parquet", shard_size=20)
    assert max(seen) == 16 and len(seen) == 2 + 3 + 4 + 5


# Open Images


def open_images(root, name, *, labels="{}-annotations-object-segmentation.csv", masks="masks", images="{}"):
    write_jpeg(root / images.format(name) / f"{name}a.jpg", 4, 6)
    rows = ["MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"]
    for label, box, mask in (("m01yrx", "1", np.ones((2, 3), bool)), ("m0bt9lr", "2", np.eye(4, 6) > 0)):
        file = f"{name}a_{label}_{box}.png"
        path = root / masks.format(name) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
        rows.append(f"{file},{name}a,/{label[0]}/{label[1:]},{box},0,1,0,1,0.9,")
    write_text(root / labels.format(name), "\n".join(rows) + "\n")


ON_TOP = [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
"""The first mask covers the image once it is brought to its size; the second, smaller one lies on top."""


def test_open_images(tmp_path):
    root = tmp_path / "oi"
    for name in ("train", "validation"):
        open_images(root, name)
    write_text(
        root / "class-descriptions-boxable.csv", "LabelName,DisplayName\n/m/01yrx,Cat\n/m/0bt9lr,Dog\n/m/07,Unused\n"
    )
    write_text(root / "train-annotations-bbox.csv", "ImageID,Source,LabelName\n")
    info = build(tmp_path, root)
    assert info.classes == ["Cat", "Dog"]
    assert split(tmp_path) == {"train_traina": ON_TOP} and split(tmp_path, "val") == {"validation_validationa": ON_TOP}
    (root / "masks/traina_m01yrx_1.png").unlink()
    with pytest.raises(DataError, match=r"lists mask 'traina_m01yrx_1.png', which exists 0 times"):
        build(tmp_path, root, rebuild=True, index=tmp_path / "other")


def test_open_images_of_fiftyone(tmp_path):
    root = tmp_path / "oi"
    for name in ("train", "validation"):
        open_images(
            root,
            name,
            labels="{}/labels/segmentations.csv",
            masks="{}/labels/masks/A",
            images="{}/data",
        )
        write_text(root / name / "metadata/classes.csv", "/m/0bt9lr,Dog\n/m/01yrx,Cat\n")
    info = build(tmp_path, root)
    assert info.classes == ["Dog", "Cat"] and list(info.splits) == ["train", "val"]
    assert split(tmp_path) == {"train_data_traina": (1 - np.array(ON_TOP)).tolist()}
    write_text(root / "train/metadata/classes.csv", "/m/0bt9lr,Dog\n")
    with pytest.raises(DataError, match=r"classes.csv has no name for label /m/01yrx, nor for 0 others"):
        build(tmp_path, root, index=tmp_path / "other")


# FiftyOne's COCO


def test_fiftyone_coco(tmp_path):
    root = tmp_path / "exported"
    for name in ("train", "val"):
        write_jpeg(root / name / "data/000001.jpg", 4, 6)
        content = {
            "info": {"year": "", "date_created": "2026"},
            "licenses": [],
            "categories": [
                {"id": 1, "name": "cat", "supercategory": None},
                {"id": 2, "name": "dog", "supercategory": None},
            ],
            "images": [
                {"id": 1, "file_name": "000001.jpg", "height": 4, "width": 6, "license": None, "coco_url": None}
            ],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 2,
                    "bbox": [1.0, 0.0, 2.0, 2.0],
                    "segmentation": [[1.0, 0.0, 3.0, 0.0, 3.0, 2.0, 1.0, 2.0]],
                    "area": 4.0,
                    "iscrowd": 0,
                }
            ],
        }
        write_json(root / name / "labels.json", content)
    info = build(tmp_path, root)
    dog = [[X, 1, 1, X, X, X]] * 2 + [[X] * 6] * 2
    assert info.classes == ["cat", "dog"]
    assert split(tmp_path) == {"train_data_000001": dog} and split(tmp_path, "val") == {"val_data_000001": dog}


# VOC and lists


def test_vocs_color_map_is_that_of_its_devkit():
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),
        2: (0, 128, 0),
        7: (128, 128, 128),
        8: (64, 0, 0),
        20: (0, 64, 128),
        255: (224, 224, 192),
    }
    assert {class_id: voc_color(class_id) for class_id in known} == known


def test_labelmap_without_colors_means_vocs(tmp_path):
    write_text(tmp_path / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:::\ncat:::\n")
    assert read_name_table(tmp_path / "labelmap.txt").colors == {(0, 0, 0): 0, (128, 0, 0): 1}
    write_text(tmp_path / "labelmap.txt", "background:::\ncat:1,2,3::\n")
    with pytest.raises(DataError, match="line 1 has no color"):
        read_name_table(tmp_path / "labelmap.txt")


def voc(root, mask, names="abc", **options):
    for name in names:
        write_jpeg(root / f"JPEGImages/{name}.jpg", 1, 4)
        write_png(root / f"SegmentationClass/{name}.png", mask, **options)


def test_voc_without_labelmap(tmp_path):
    """The palette's indices are ids, or colors are looked up in VOC's color map; the names are a table's."""
    root = tmp_path / "VOCdevkit/VOC2012"
    write_text(tmp_path / "names.txt", "background\ncat\ndog\n")
    voc(root, uint8([0, 1, 2, 255]), palette=True)
    for name, listed in {"train": "a\nb", "val": "c", "trainval": "a\nb\nc"}.items():
        write_text(root / f"ImageSets/Segmentation/{name}.txt", listed)
    write_text(root / "ImageSets/Main/cat_train.txt", "a 1\nb -1\n")
    with pytest.raises(DataError, match="no table of class names"):
        build(tmp_path, tmp_path / "VOCdevkit")
    info = build(tmp_path, tmp_path / "VOCdevkit", names=tmp_path / "names.txt")
    assert info.background == 0 and info.num_samples("val") == 1
    assert split(tmp_path, "val") == {"VOC2012_JPEGImages_c": [[0, 1, 2, X]]}
    voc(root, uint8([voc_color(1), voc_color(0), voc_color(2), (224, 224, 192)]))
    for path in root.glob("SegmentationClass/*"):
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(DataError, match=r"is a RGB image .*--colormap voc"):
        build(tmp_path, root, names=tmp_path / "names.txt")
    build(tmp_path, root, names=tmp_path / "names.txt", colormap="voc")
    assert split(tmp_path, "val") == {"JPEGImages_c": [[1, 0, 2, X]]}


def test_lists_beside_the_images(tmp_path, capsys):
    """As CamVid and datumaro write them: an image and its mask a line, with folders and suffixes."""
    root = tmp_path / "camvid"
    write_text(root / "label_colors.txt", "0 0 0 background\n250 50 83 cat\n36 179 83 dog\n")
    for name in "abcd":
        write_jpeg(root / f"images/{name}.jpg", 1, 2)
        write_png(root / f"masks/{name}.png", uint8([[250, 50, 83], [36, 179, 83]]))
    write_text(root / "train.txt", "/images/a.jpg masks/a.png\n/images/b.jpg masks/b.png\n")
    write_text(root / "val.txt", "images/c.jpg\n")
    build(tmp_path, root)
    assert set(split(tmp_path)) == {"images_a", "images_b"} and split(tmp_path, "val") == {"images_c": [[1, 2]]}
    assert "1 images with a mask are in no list" in capsys.readouterr().out
    write_text(root / "val.txt", "images/c.jpg\na\n")
    with pytest.raises(DataError, match=r"lists images/a.jpg for train and for val: expected each image in one split"):
        build(tmp_path, root)
    write_text(root / "val.txt", "c\nx\n")
    with pytest.raises(DataError, match=r"val.txt lists 'x', and 0 more, for which no image"):
        build(tmp_path, root)
    write_text(root / "val.txt", "notes about\nthe files\n")
    (root / "train.txt").unlink()
    build(tmp_path, root)
    assert len(split(tmp_path)) == 3


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{}/a.jpg", "{}annot/a.png"),
        ("{}/a.jpg", "{}_labels/a_L.png"),
        ("{}_images/a.jpg", "{}_masks/a.png"),
        ("images_{}/a.jpg", "masks_{}/a.png"),
        ("{}/image_2/a.jpg", "{}/semantic/a.png"),
        ("data/{}/img/a.jpg", "data/{}/label/a.png"),
    ],
)
def test_folders_that_say_split_and_role(tmp_path, image, mask):
    root = tmp_path / "set"
    write_text(root / "classes.txt", "sky\ntree\nroad\n")
    for name in ("train", "val"):
        for letter in "a" if name == "train" else "ab":
            write_jpeg(root / image.format(name).replace("a.", f"{letter}."), 1, 3)
            write_png(
                root / mask.format(name).replace("a.", f"{letter}.").replace("a_L", f"{letter}_L"), uint8([0, 2, 255])
            )
    build(tmp_path, root)
    assert (
        list(split(tmp_path).values()) == [[[0, 2, X]]] and list(split(tmp_path, "val").values()) == [[[0, 2, X]]] * 2
    )


def test_a_test_set_without_masks_is_left_out(tmp_path, capsys):
    root = tmp_path / "set"
    write_text(root / "classes.txt", "sky\ntree\nroad\n")
    for name in ("train", "val", "test"):
        write_jpeg(root / f"images/{name}/a.jpg", 1, 3)
        if name != "test":
            write_png(root / f"masks/{name}/a.png", uint8([0, 2, 255]))
    build(tmp_path, root)
    assert "1 images in folders of a test set have no mask and are left out" in capsys.readouterr().out
    (root / "masks/val/a.png").unlink()
    with pytest.raises(DataError, match=r"val/a.png is missing"):
        build(tmp_path, root)


# Tiles


def test_a_side_is_divided_evenly():
    assert grid(10, 4) == [(0, 3), (3, 6), (6, 10)] and grid(8, 4) == [(0, 4), (4, 8)] and grid(3, 4) == [(0, 3)]


def test_large_images_are_cut_into_tiles(tmp_path):
    root = tmp_path / "set"
    write_text(root / "classes.txt", "sky\ntree\nroad\n")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (70, 100, 3), dtype=np.uint8)
    ids = rng.integers(0, 3, (70, 100)).astype(np.uint8)
    ids[:35, 50:] = 255
    for name, shape in (("large", (70, 100)), ("small", (20, 30))):
        write_png(root / f"images/{name}.png", pixels[: shape[0], : shape[1]])
        write_png(root / f"masks/{name}.png", ids[: shape[0], : shape[1]])
    info = build(tmp_path, root, tile=50, val_fraction=0, shard_size=3)
    found = read_split(tmp_path / "out", "train")
    assert set(found) == {"images_small", "images_large_y0x0", "images_large_y1x0", "images_large_y1x1"}
    assert info.num_samples("train") == 4 and info.report["tiles_without_label"] == 1
    assert [shard.samples for shard in info.shards("train")] in ([3, 1], [1, 3])
    for key, (rows, columns) in {"y0x0": ((0, 35), (0, 50)), "y1x1": ((35, 70), (50, 100))}.items():
        image, mask, meta = found[f"images_large_{key}"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image))), pixels[slice(*rows), slice(*columns)])
        assert mask == np.where(ids == 255, X, ids.astype(np.uint16))[slice(*rows), slice(*columns)].tolist()
        assert meta["tile"] == [rows[0], columns[0], rows[1], columns[1]]
    assert "--tile 50" in read_info(tmp_path / "out").command
    with pytest.raises(ValueError, match="tile = 8: expected at least 32 pixels"):
        Arguments(path=root, out="o", tile=8)


def test_regions_are_drawn_before_an_image_is_cut(tmp_path):
    root = tmp_path / "set"
    write_jpeg(root / "a.jpg", 64, 64)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 64, "width": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "segmentation": [[16, 0, 48, 0, 48, 64, 16, 64]]}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    write_json(root / "i.json", content)
    build(tmp_path, root, tile=32)
    left = [[X] * 16 + [1] * 16] * 32
    assert split(tmp_path)["a_y0x0"] == left and split(tmp_path)["a_y1x1"] == [row[::-1] for row in left]


def test_an_image_that_pillow_refuses_is_cut(tmp_path, monkeypatch):
    """Pillow's limit of 179 million pixels is raised for images that are cut; here it is lowered, to keep the test small."""
    root = tmp_path / "set"
    write_text(root / "classes.txt", "sky\ntree\n")
    write_png(root / "images/a.png", np.zeros((64, 64, 3), np.uint8))
    write_png(root / "masks/a.png", np.eye(64, dtype=np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)
    with pytest.raises(DataError, match=r"a.png is too large .*--tile 1024"):
        build(tmp_path, root)
    build(tmp_path, root, tile=32)
    assert len(split(tmp_path)) == 4 and Image.MAX_IMAGE_PIXELS == 1500


def test_damaged_parquet_build_is_built_again_as_verify_says(tmp_path, capsys):
    hub(tmp_path / "data/train-00000-of-00001.parquet", MASKS)
    hub(tmp_path / "data/validation-00000-of-00001.parquet", MASKS[:2])
    write_text(tmp_path / "data/classes.txt", "a\nb\nc\nd\n")
    build(tmp_path, tmp_path / "data")
    built_again_as_verify_says(tmp_path / "out", capsys, tmp_path)


def test_masks_that_are_corrected_cost_only_their_own_shard(tmp_path, capsys):
    for name in "abcd":
        write_jpeg(tmp_path / f"set/images/{name}.jpg", 2, 3)
        write_png(tmp_path / f"set/masks/{name}.png", np.ones((2, 3), np.uint8))
    write_json(tmp_path / "set/classes.json", ["sky", "tree"])
    options = {
        "images": tmp_path / "set/images",
        "masks": tmp_path / "set/masks",
        "names": tmp_path / "set/classes.json",
        "out": str(tmp_path / "out"),
        "processes": 1,
        "val_fraction": 0.0,
        "shard_size": 1,
    }
    folder.build_folder(Arguments(**options))
    keys = [row["key"] for row in read_index(tmp_path / "out", "train").to_pylist()]
    shutil.rmtree(tmp_path / "out")
    write_png(tmp_path / f"set/masks/{keys[2]}.png", np.full((2, 3), 9, np.uint8))
    with pytest.raises(DataError, match=f"{keys[2]}.png") as error:
        folder.build_folder(Arguments(**options))
    assert error.value.__notes__[0].startswith("2 of 4 shards are finished and kept")
    write_png(tmp_path / f"set/masks/{keys[2]}.png", np.zeros((2, 3), np.uint8))
    capsys.readouterr()
    info = folder.build_folder(Arguments(**options))
    assert "2 of 4 shards kept from an earlier run" in capsys.readouterr().out
    assert folder.build_folder(Arguments(**options | {"out": str(tmp_path / "fresh")})).digest == info.digest
