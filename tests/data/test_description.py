"""A description round-trips, its digest follows the samples, and it tells whether a build is up to date."""

import dataclasses
import json

import pytest
from numbered import described, example_info, numbered_samples

from kiloseg.data.description import read_info, write_info
from kiloseg.data.index import write_index
from kiloseg.data.writing.build import plan_shards, up_to_date
from kiloseg.data.writing.shard import write_shard


@pytest.mark.parametrize("changes", [{}, {"background": None}, {"recipe": {}}, {"splits": {}}])
def test_description_round_trips(tmp_path, changes):
    info = example_info(**changes)
    write_info(tmp_path, info)
    assert read_info(tmp_path) == info
    assert read_info(str(tmp_path)).digest == info.digest
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    content = json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))
    assert content["format"] == "kiloseg-shards-1"
    assert content["num_classes"] == 3
    assert content["ignore_id"] == 65535
    assert content["classes"] == ["Hintergrund", "Bäume", "木"]


def test_digest_follows_samples_and_nothing_else():
    info = example_info()
    train, val = info.splits["train"], info.splits["val"]
    same = [{"name": "other"}, {"license": "MIT"}, {"command": "make"}, {"recipe": {"seed": 1}}, {"background": None}]
    same.append({"splits": {"val": val, "train": train}})
    other = [
        {"classes": ["Hintergrund", "Bäume", "水"]},
        {"classes": ["Bäume", "Hintergrund", "木"]},
        {"splits": {"train": train[::-1], "val": val}},
        {"splits": {"train": train[:1], "val": val}},
        {"splits": {"train": val, "val": train}},
        {"splits": {"train": [dataclasses.replace(train[0], sha256="f" * 64), train[1]], "val": val}},
    ]
    assert {example_info(**changes).digest for changes in same} == {info.digest}
    assert len({example_info(**changes).digest for changes in other} | {info.digest}) == len(other) + 1


def test_plan_of_shards_covers_a_split_once():
    tasks = plan_shards("val", 25, 10)
    assert [(task.name, task.start, task.stop) for task in tasks] == [
        ("val-000000.tar", 0, 10),
        ("val-000001.tar", 10, 20),
        ("val-000002.tar", 20, 25),
    ]
    assert [task.stop for task in plan_shards("val", 20, 10)] == [10, 20]
    assert plan_shards("val", 0, 10) == []


def test_up_to_date_means_whole_and_of_this_recipe(tmp_path):
    shards = [write_shard(tmp_path / f"{n}.tar", numbered_samples([n]), num_classes=300)[0] for n in range(2)]
    assert not up_to_date(tmp_path, {"of": "tests"}), "no description yet"
    described(tmp_path, {"train": shards[:1], "val": shards[1:]}, 300)
    assert not up_to_date(tmp_path, {"of": "tests"}), "no index yet"
    row = {"key": "a", "split": "train", "shard": "0.tar", "height": 1, "width": 1, "class_ids": [], "class_pixels": []}
    write_index(tmp_path, [row, {**row, "split": "val", "shard": "1.tar"}])
    assert up_to_date(tmp_path, {"of": "tests"})
    assert not up_to_date(tmp_path, {"of": "others"})
    (tmp_path / "1.tar").write_bytes(b"short")
    assert not up_to_date(tmp_path, {"of": "tests"})
    (tmp_path / "1.tar").unlink()
    assert not up_to_date(tmp_path, {"of": "tests"})
    assert not up_to_date(tmp_path / "nowhere", {"of": "tests"})
