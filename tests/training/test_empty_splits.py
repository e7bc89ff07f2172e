"""NaN and emptiness are refused, and are never results: splits without labels, and validations that lose samples."""

import dataclasses
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_samples, write_dataset

from kiloseg.data.description import read_info, write_info
from kiloseg.data.index import read_index, write_index
from kiloseg.data.labeled import require_labeled
from kiloseg.data.reading import loader
from kiloseg.data.reading.shared_memory import TRIALS_VARIABLE, require_room
from kiloseg.data.writing.shard import write_shard
from kiloseg.overrides import override
from kiloseg.storage.errors import DataError
from kiloseg.training.evaluation import evaluate
from kiloseg.training.loop import train
from kiloseg.tuning.ranking import best_row
from kiloseg.tuning.summary import table
from kiloseg.tuning.trial_row import TrialRow


@pytest.fixture
def without_labels(tmp_path):
    """A data set of which one split has no labels."""

    def made(split, *, keep=0, index=True):
        directory = tmp_path / "unlabeled"
        write_dataset(directory, {"train": [8, 8], "val": [5, 6]})
        info = read_info(directory)
        rows = [row for row in read_index(directory).to_pylist() if row["split"] != split]
        shards = []
        for number, shard in enumerate(info.splits[split]):
            samples = [
                sample
                if number * 100 + place >= 200 - keep
                else dataclasses.replace(sample, mask=np.full((64, 64), 65535))
                for place, sample in enumerate(make_samples(split, shard.samples))
            ]
            new, new_rows = write_shard(directory / shard.name, samples, num_classes=6)
            shards.append(new)
            rows += [{"split": split, **row} for row in new_rows]
        info.splits[split] = shards
        write_info(directory, info)
        write_index(directory, rows)
        if not index:
            (directory / "index.parquet").unlink()
        return str(directory)

    return made


@pytest.mark.parametrize(
    ("split", "consequence"), [("train", "nothing can be learned"), ("val", "nothing to validate")]
)
def test_split_without_labels_is_refused_before_training(quick, without_labels, split, consequence):
    reports = []
    with pytest.raises(
        DataError, match=f"index.parquet: split '{split}' .* hold no pixel of the 6 classes.*{consequence}"
    ):
        train(override(quick, {"data.path": without_labels(split)}), reports.append)
    assert reports == []


@pytest.mark.parametrize(
    ("split", "message"),
    [("train", "no pixel of the 2 training batches so far has a label"), ("val", "there is no IoU")],
)
def test_split_without_labels_is_refused_where_no_index_tells(quick, without_labels, split, message):
    config = override(quick, {"data.path": without_labels(split, index=False), "trainer.steps": 4})
    reports = []
    with pytest.raises(DataError, match=re.escape(message)) as error:
        train(config, reports.append)
    assert not any("val/miou" in report for report in reports)
    if split == "val":
        assert "step-00000004.pt" in error.value.__notes__[0], "what was trained is kept"
        assert Path(config.trainer.output, "step-00000004.pt").exists()


def test_classes_that_are_left_out_and_ignored_are_no_labels(quick, squares):
    info = read_info(squares)
    data = override(quick, {"data.num_classes": 2, "data.other_classes": "ignore"}).data
    require_labeled(data, info)
    rows = read_index(squares).to_pylist()
    other = sorted(set(range(6)) - {0})[-1]
    for row in rows:
        if row["split"] == "val":
            row["class_ids"], row["class_pixels"] = [other], [9]
    copy = Path(quick.trainer.output).parent / "copy"
    shutil.copytree(squares, copy)
    write_index(copy, rows)
    moved = override(quick, {"data.path": str(copy), "data.num_classes": 2, "data.other_classes": "ignore"}).data
    with pytest.raises(DataError, match="split 'val' of data set squares hold no pixel of the 2 classes"):
        require_labeled(moved, info)
    require_labeled(override(quick, {"data.path": str(copy), "data.num_classes": 2}).data, info)


def test_first_samples_count_where_only_they_are_validated(quick, squares, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(squares, copy)
    rows = read_index(squares).to_pylist()
    for row in [row for row in rows if row["split"] == "val"][:3]:
        row["class_ids"], row["class_pixels"] = [], []
    write_index(copy, rows)
    data = override(quick, {"data.path": str(copy), "data.val_samples": 4}).data
    require_labeled(data, read_info(copy))
    with pytest.raises(DataError, match="the first 3 samples of split 'val'"):
        require_labeled(dataclasses.replace(data, val_samples=3), read_info(copy))


def row(trial, miou):
    return TrialRow(
        trial=trial,
        outcome="finished",
        overrides={},
        miou=miou,
        last_miou=miou,
        step=1,
        peak_memory_gib=None,
        val_peak_memory_gib=None,
        images_per_s=None,
        seconds=1.0,
        train_seconds=1.0,
    )


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0], [2, 1, 0]])
def test_nan_is_never_best(order):
    """Of studies before today, which wrote it."""
    rows = [row("a", math.nan), row("b", 0.1), row("c", None)]
    rows = [rows[place] for place in order]
    assert best_row(rows).trial == "b"
    assert table(rows)["trial"][0] == "b"
    assert best_row([row("a", math.nan)]) is None


class Lossy:
    """A loader that loses its last batch, as torch's does where sharing it fails in a thread."""

    num_workers = 2

    def __init__(self, whole):
        self.whole = whole

    def __iter__(self):
        return iter(list(self.whole)[:-1])


def test_samples_that_do_not_arrive_are_an_error(quick, monkeypatch):
    data = override(quick, {"data.val_batch_size": 4}).data
    info = read_info(data.path)
    assert sum(len(images) for images, _ in loader.validation_batches(data, info)) == 11
    whole = loader.data_loader
    monkeypatch.setattr(loader, "data_loader", lambda *arguments, **keywords: Lossy(whole(*arguments, **keywords)))
    with pytest.raises(
        DataError, match=r"received 8 of its 11 samples.*/dev/shm.*data.loader_workers.*data.val_batch_size"
    ):
        list(loader.validation_batches(data, info))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("loader_workers", [0, 1, 2])
def test_every_worker_knows_how_many_samples_it_gets(quick, world, loader_workers):
    data = override(quick, {"data.loader_workers": loader_workers}).data
    info = read_info(data.path)
    assert sum(loader.validation_batches(data, info, rank=rank, world=world).samples for rank in range(world)) == 11


SCRIPT = """
import sys
from kiloseg.config import Data
from kiloseg.data.description import read_info
from kiloseg.data.reading import loader
data = Data(path=sys.argv[1], crop=64, loader_workers=2, val_batch_size=3)
info = read_info(data.path)
if sys.argv[2] == "unknown":
    loader.batch_shapes = lambda *_: []
try:
    if sys.argv[2] == "training":
        loader.TrainBatches(data, info, batch_size=32, seed=0)
    else:
        print(sum(len(images) for images, _ in loader.validation_batches(data, info)), "arrived")
except ValueError as error:
    print(str(error).strip().splitlines()[-1])
"""


def in_shared_memory_of(size, *arguments):
    """What a process prints that has a /dev/shm of its own; skips where no such process can be made."""
    inside = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        inside,
        "sh",
        sys.executable,
        "-c",
        SCRIPT,
    ]
    try:
        probe = subprocess.run([*command[:-3], "true"], check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if probe.returncode:
        pytest.skip("a user may not mount in a namespace of its own")
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    return subprocess.run(
        [*command, *arguments], check=True, capture_output=True, text=True, timeout=120, env=env
    ).stdout


@pytest.mark.parametrize("what", ["validation", "unknown", "training"])
def test_small_shared_memory_is_an_error_that_names_the_settings(squares, what):
    output = in_shared_memory_of("300k", str(squares), what)
    assert "/dev/shm" in output
    assert "data.loader_workers" in output
    assert ("trainer.batch_size" if what == "training" else "data.val_batch_size") in output
    assert "arrived" not in output


def test_shared_memory_counts_all_processes_of_the_machine(monkeypatch):
    """Workers of a group and trials of a study share it; each alone would fit."""
    whole = os.statvfs("/dev/shm")
    half = whole.f_blocks * whole.f_frsize // 2
    if half > whole.f_bavail * whole.f_frsize:
        pytest.skip("/dev/shm is more than half full")
    require_room(half, "data.loader_workers")
    for workers, trials, enough in [("2", "1", True), ("3", "1", False), ("1", "2", True), ("2", "2", False)]:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", workers)
        monkeypatch.setenv(TRIALS_VARIABLE, trials)
        if enough:
            require_room(half, "data.loader_workers")
            continue
        with pytest.raises(
            DataError, match=r"[34] training processes of this machine need .* lower data.loader_workers"
        ):
            require_room(half, "data.loader_workers")


def test_enough_shared_memory_is_enough(squares):
    assert in_shared_memory_of("64m", str(squares), "validation") == "11 arrived\n"


def test_evaluation_without_batches_is_an_error(quick):
    from kiloseg.models import build_segmenter

    with pytest.raises(DataError, match="there is no IoU"):
        evaluate(build_segmenter(quick, 6, torch.device("cpu")), [])
