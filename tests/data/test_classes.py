"""The most frequent classes are kept, and labels, names and tables follow them."""

import dataclasses

import numpy as np
import pytest
from numbered import described, example_info

from kiloseg.config import Data
from kiloseg.data.classes import Classes, count_classes, iou_table, label_table, select_classes
from kiloseg.data.codec import IGNORE_ID
from kiloseg.data.index import read_index, write_index
from kiloseg.data.reading.loader import validation_batches
from kiloseg.data.writing.shard import Sample, write_shard
from kiloseg.storage.errors import DataError

pytestmark = pytest.mark.usefixtures("one_thread")


def counted(directory, samples_per_class, background=None):
    """A validation image with a row of every class and of ignored pixels, and an index of training samples."""
    num_classes = len(samples_per_class)
    mask = np.repeat([*range(num_classes), IGNORE_ID], 8)[:, None] + np.zeros((1, 32), dtype=int)
    image = np.zeros((*mask.shape, 3), dtype=np.uint8)
    shard, rows = write_shard(directory / "val.tar", [Sample(key="k", image=image, mask=mask)], num_classes=num_classes)
    rows = [{"split": "val", **row} for row in rows]
    for sample in range(max(samples_per_class)):
        ids = [c for c, count in enumerate(samples_per_class) if sample < count]
        rows.append(rows[0] | {"split": "train", "class_ids": ids, "class_pixels": [1] * len(ids)})
    write_index(directory, rows)
    return described(directory, [shard], num_classes, split="val", background=background)


@pytest.mark.parametrize(
    ("samples_per_class", "num_classes", "background", "kept"),
    [
        ((5, 1, 4, 4, 0, 9), None, None, [0, 1, 2, 3, 4, 5]),
        ((5, 1, 4, 4, 0, 9), 6, None, [0, 1, 2, 3, 4, 5]),
        ((5, 1, 4, 4, 0, 9), 2, None, [0, 5]),
        ((5, 1, 4, 4, 0, 9), 3, None, [0, 2, 5]),  # of 2 and 3, equally frequent, the lower
        ((5, 1, 4, 4, 0, 9), 3, 4, [0, 4, 5]),  # the background, though it is the rarest
        ((5, 1, 4, 4, 0, 9), 3, 5, [0, 2, 5]),
        ((9, 7, 6, 3, 2, 1), 4, 0, [0, 1, 2, 3]),  # in order of frequency: the first
        ((4, 4, 4, 4, 4, 4), 4, None, [0, 1, 2, 3]),
        ((1, 0, 0, 0, 0, 0), 3, None, [0, 1, 2]),  # fewer occur than are asked for
    ],
)
def test_most_frequent_classes_are_kept(tmp_path, samples_per_class, num_classes, background, kept):
    info = counted(tmp_path, samples_per_class, background)
    data = Data(path=str(tmp_path), num_classes=num_classes, loader_workers=0)
    classes = select_classes(data, info)
    assert classes.ids.tolist() == kept
    assert classes.names == [f"class {c}" for c in kept]
    assert classes.background == (None if background is None else kept.index(background))
    assert count_classes(data, info) == len(classes) == len(kept)
    rest = -1 if background is None else kept.index(background)
    ((_, labels),) = validation_batches(data, info)
    expected = [kept.index(c) if c in kept else rest for c in range(6)]
    assert labels[0, : 7 * 8 : 8, 0].tolist() == [*expected, -1]
    ((_, labels),) = validation_batches(dataclasses.replace(data, other_classes="ignore"), info)
    expected = [kept.index(c) if c in kept else -1 for c in range(6)]
    assert labels[0, : 7 * 8 : 8, 0].tolist() == [*expected, -1]


def test_reports_name_the_classes_that_were_kept(tmp_path):
    counted(tmp_path, (5, 1, 4, 4, 0, 9))
    table = iou_table(Data(path=str(tmp_path), num_classes=3), [0.5, float("nan"), 0.25])
    assert table == {"class_id": [0, 2, 5], "name": ["class 0", "class 2", "class 5"], "iou": [0.5, None, 0.25]}


def test_classes_are_counted_in_training_samples_only(tmp_path):
    info = counted(tmp_path, (2, 0, 3, 2))
    index = read_index(tmp_path).to_pylist()
    only_in_val = index[0] | {"class_ids": [1], "class_pixels": [9]}
    write_index(tmp_path, [*index, *[only_in_val] * 20])
    assert select_classes(Data(path=str(tmp_path), num_classes=2), info).ids.tolist() == [0, 2]


def test_fewer_classes_without_an_index(tmp_path):
    info = counted(tmp_path, (2, 1, 3))
    (tmp_path / "index.parquet").unlink()
    assert len(select_classes(Data(path=str(tmp_path)), info)) == 3, "all classes need none"
    with pytest.raises(DataError, match=r"index.parquet does not exist; build the data set again"):
        select_classes(Data(path=str(tmp_path), num_classes=2), info)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"index.parquet is damaged \("):
        select_classes(Data(path=str(tmp_path), num_classes=2), info)


def test_label_table_by_hand():
    info = example_info(background=1)
    table = label_table(info, Classes(ids=np.array([1, 2]), names=["b", "c"], background=0, others=0))
    assert table.shape == (65536,)
    assert table[:3].tolist() == [0, 0, 1]
    assert table[65535] == -1
    assert set(table[3:65535].tolist()) == {-2}, "ids that the data set lacks are told from ignored ones"
    table = label_table(info, Classes(ids=np.array([0, 2]), names=["a", "c"], background=None))
    assert table[:3].tolist() == [0, -1, 1]
    background_alone = dataclasses.replace(example_info(background=1), classes=["a", "b"])
    kept = Classes(ids=np.array([1]), names=["b"], background=0)
    assert label_table(background_alone, kept)[:2].tolist() == [-1, 0], "the others may be ignored beside a background"
    largest = dataclasses.replace(example_info(background=None), classes=[""] * 65535)
    assert np.array_equal(label_table(largest, select_classes(Data(), largest)), [*range(65535), -1])
