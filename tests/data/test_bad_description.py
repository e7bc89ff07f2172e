"""What is wrong with dataset.json or the index is said with the file, what was expected, and the remedy."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from bad_data import read_all, refused, write_good

from kiloseg.data.description import read_info
from kiloseg.data.index import read_index
from kiloseg.data.reading.reader import Reader


@pytest.fixture
def good(tmp_path):
    """Four samples in one shard, without a fault."""
    return write_good(tmp_path)


# dataset.json


def test_missing_description(tmp_path):
    refused(
        lambda: read_info(tmp_path / "nowhere"),
        f"{tmp_path}/nowhere/dataset.json does not exist",
        "expected a data set folder",
        "python datasets/glyphs.py --out DIR",
    )


def rewritten(directory, change):
    path = directory / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_other_format(good):
    rewritten(good, lambda content: content.update(format="kiloseg-shards-0"))
    refused(
        lambda: read_info(good),
        f"{good}/dataset.json: format is 'kiloseg-shards-0', expected 'kiloseg-shards-1'",
        "build the data set again",
    )


@pytest.mark.parametrize("content", ["", "{", '{"format": "kiloseg-shards-1", "na', "[1, 2]", "null", "3", '"text"'])
def test_damaged_description(good, content):
    (good / "dataset.json").write_text(content)
    refused(lambda: read_info(good), f"{good}/dataset.json is damaged (", "build the data set again")


def test_description_that_is_no_text(good):
    (good / "dataset.json").write_bytes(b"\x80\x81\xff" * 100)
    refused(lambda: read_info(good), f"{good}/dataset.json is damaged (", "build the data set again")


@pytest.mark.parametrize(
    "field", ["format", "name", "num_classes", "ignore_id", "background", "licence", "command", "recipe", "splits"]
)
def test_description_without_a_field_names_it(good, field):
    rewritten(good, lambda content: content.pop(field))
    refused(lambda: read_info(good), f"{good}/dataset.json is damaged (KeyError: '{field}')")


DIGEST = "0" * 64


@pytest.mark.parametrize(
    "change",
    [
        {"splits": []},
        {"splits": {"train": 5}},
        {"splits": {"train": [5]}},
        {"splits": {"train": [{"name": "a.tar"}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": 1, "bytes": 1, "sha256": DIGEST, "more": 1}]}},
        {"splits": {"train": [{"name": 5, "samples": 1, "bytes": 1, "sha256": DIGEST}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": "1", "bytes": 1, "sha256": DIGEST}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": -1, "bytes": 1, "sha256": DIGEST}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": 1, "bytes": 1, "sha256": "../../" + DIGEST[6:]}]}},
        {"splits": {"train": [{"name": "a.tar", "samples": 1, "bytes": 1, "sha256": 5}]}},
        {"classes": 3},
        {"classes": "abc"},
        {"background": "0"},
        {"background": 0.5},
    ],
    ids=str,
)
def test_description_with_a_field_of_another_kind(good, change):
    rewritten(good, lambda content: content.update(change))
    refused(lambda: read_info(good), f"{good}/dataset.json")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"num_classes": 4}, "num_classes 4 with 3 class names"),
        ({"ignore_id": 255}, "ignore_id 255: expected as many as names, 2 to 65535, and ignore_id 65535"),
        ({"classes": ["one"], "num_classes": 1}, "num_classes 1 with 1 class names"),
        ({"background": 3}, "background is 3, expected a class id or null"),
        ({"background": -1}, "background is -1, expected a class id or null"),
    ],
)
def test_description_that_contradicts_itself(good, change, fragment):
    rewritten(good, lambda content: content.update(change))
    refused(lambda: read_info(good), f"{good}/dataset.json: ", fragment)


@pytest.mark.parametrize("name", ["sub/part.tar", "../part.tar", "/etc/passwd", "sub\\part.tar", "..", ".hidden.tar"])
def test_shard_outside_of_the_folder(good, name):
    rewritten(good, lambda content: content["splits"]["val"][0].update(name=name))
    refused(
        lambda: read_info(good),
        f"{good}/dataset.json: shard name {name!r} must be a plain file name beside dataset.json",
    )


def test_name_of_a_shard_is_never_run_as_a_command(good, monkeypatch):
    monkeypatch.chdir(good)
    name = "pipe:touch created"
    rewritten(good, lambda content: content["splits"]["val"][0].update(name=name))
    refused(lambda: read_all(good), f"{good}/{name} is missing")
    info = read_info(good)
    with Reader(good, info.shards("val")) as reader:
        refused(lambda: reader.read(0, 0), f"{good}/{name} is missing")
    (good / "part-000000.tar").rename(good / name)
    assert len(read_all(good)[0].labels) == 4, "it is a file like any other"
    assert not (good / "created").exists()


# index.parquet


def test_missing_index(good):
    refused(lambda: read_index(good), f"{good}/index.parquet does not exist; build the data set again")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 100])
def test_damaged_index(good, content):
    (good / "index.parquet").write_bytes(content)
    refused(lambda: read_index(good, "train"), f"{good}/index.parquet is damaged (", "build the data set again")


@pytest.mark.parametrize("columns", [{"key": ["a"], "class_ids": ["none"]}, {"key": ["a"], "split": ["train"]}])
def test_index_of_other_columns(good, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), good / "index.parquet")
    refused(lambda: read_index(good), f"{good}/index.parquet is damaged (", "build the data set again")
