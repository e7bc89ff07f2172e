"""A data set at a URL is read as in a folder of this machine: batches, resumption, validation, verify, describe, training."""

import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kiloseg.config import Data
from kiloseg.data.describe import Arguments, describe
from kiloseg.data.describe import main as draw
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import TrainBatches, validation_batches
from kiloseg.data.reading.reader import Reader
from kiloseg.data.verify import verify
from kiloseg.overrides import override
from kiloseg.storage import cache
from kiloseg.storage.cache import ShardCache, StoppedError
from kiloseg.storage.cache_folder import cache_folder
from kiloseg.storage.errors import DataError
from kiloseg.storage.filesystems import RemoteFolder, open_folder
from kiloseg.training.loop import train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # fewer cores than workers
]


@pytest.fixture
def away(s3, squares):
    """The URL of a copy of `squares`: 13 + 9 + 20 samples of train, 5 + 6 of val."""
    folder = open_folder(s3)
    for path in squares.iterdir():
        folder.put(path, path.name)
    return s3


def name(url):
    return url.partition("?")[0]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)
    )


def batches(path, epoch=0, skip=0, **changes):
    data = Data(path=str(path), crop=64, **{"loader_workers": 0, "shuffle_buffer": 5, **changes})
    return list(TrainBatches(data, read_info(path), batch_size=6, seed=3).epoch(epoch, skip=skip))


def copies():
    """Digests of the shards that are kept here."""
    return {path.stem for path in cache_folder().glob("*.tar")}


def digests(path, split="train"):
    return [shard.sha256 for shard in read_info(path).shards(split)]


# The same as here


@pytest.mark.parametrize("skip", [0, 4])
def test_batches_are_those_of_a_folder(away, squares, skip):
    for epoch in (0, 1):
        assert equal(batches(away, epoch, skip), batches(squares, epoch, skip))


def test_loader_processes_read_a_url(away, squares):
    """They are spawned: a forked one would hang in the client of the object store."""
    changes = {"loader_workers": 2, "repeat_threshold": 0.9, "num_classes": 4}
    assert equal(batches(away, 1, 2, **changes), batches(squares, 1, 2, **changes))

    def validation(path):
        data = Data(path=str(path), loader_workers=2, val_batch_size=4)
        loaded = validation_batches(data, read_info(path))
        return [*loaded, *loaded]

    assert equal(validation(away), validation(squares))


def test_training_goes_on_from_a_url(away, quick):
    """Half of a run over the folder, the other half over its copy; the half-way checkpoint lies inside an epoch."""
    config = override(
        quick,
        {"data.loader_workers": 1, "trainer.validate_every": 3, "trainer.steps": 7, "trainer.keep_checkpoints": 9},
    )
    reports = []
    whole = train(config, reports.append)
    first = next(report for report in reports if report["step"] == 3)
    moved = override(config, {"data.path": away, "trainer.output": config.trainer.output + "-moved"})
    assert 3 % TrainBatches(moved.data, read_info(away), batch_size=8, seed=0).steps_per_epoch
    resumed = train(moved, reports.append, resume=Path(first["checkpoint"]))
    for number in ("train/loss", "val/miou", "val/iou_per_class"):
        assert resumed[number] == pytest.approx(whole[number], abs=1e-6, nan_ok=True)


def test_verify_and_describe_take_a_url(away, squares, tmp_path, capsys):
    assert verify(away, processes=1) == []
    assert describe(away, split=None, rare=10) == describe(str(squares), split=None, rare=10)
    assert draw(Arguments(directory=away, out=tmp_path / "figures", pictures=3)) == 0
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["frequency.png", "samples.png"]
    open_folder(away).remove("val-000001.tar")
    assert verify(away, processes=1) == [
        f"{name(away)}/val-000001.tar: is missing, though dataset.json lists it",
    ]


# Copies


def test_a_shard_is_fetched_once(away, squares):
    expected = [batches(squares, epoch) for epoch in range(3)]
    assert equal(batches(away, 0), expected[0])
    assert copies() == set(digests(away))
    folder, shards = open_folder(away), read_info(away).shards("train")
    for shard in shards:  # as long as before, so that the check of sizes passes
        folder.write(shard.name, bytes(shard.bytes))
    assert equal(batches(away, 1), expected[1]), "by the copies"
    (cache_folder() / f"{shards[1].sha256}.tar").write_bytes(b"cut short")
    with pytest.raises(DataError, match=rf"^{name(away)}/{shards[1].name} is not what dataset\.json lists \(sha256 "):
        batches(away, 2)
    folder.put(squares / shards[1].name, shards[1].name)
    assert equal(batches(away, 2), expected[2])


def test_resuming_fetches_what_is_left_and_no_more(away, squares):
    data = Data(path=away, crop=64, loader_workers=0, shuffle_buffer=1)
    info = read_info(away)
    epoch = TrainBatches(data, info, batch_size=6, seed=3).epoch(0, skip=6)
    (last,) = list(epoch)
    assert last.images.shape[0] == 6
    assert len(copies()) == 1


def test_little_room_is_enough(away, squares):
    changes = {"cache_gib": 1e-9, "repeat_threshold": 0.9, "shuffle_buffer": 1000}
    assert equal(batches(away, **changes), batches(squares, repeat_threshold=0.9, shuffle_buffer=1000))
    assert len(copies()) <= 2, "the last one, and the one that was fetched meanwhile"


def test_what_was_used_longest_ago_goes_first(away):
    shards = read_info(away).shards("train")
    room = sum(shard.bytes for shard in shards) - 1
    for shard in shards[:2]:
        ShardCache(open_folder(away), room).open(shard).close()
    os.utime(cache_folder() / f"{shards[0].sha256}.tar", (1, 1))
    os.utime(cache_folder() / f"{shards[1].sha256}.tar", (2, 2))
    old, new = cache_folder() / "a.partial", cache_folder() / "b.partial"
    old.touch(), new.touch(), os.utime(old, (1, 1))
    held = ShardCache(open_folder(away), room).open(shards[0])  # used just now
    ShardCache(open_folder(away), room).open(shards[2]).close()
    assert copies() == {shards[0].sha256, shards[2].sha256}
    assert (old.exists(), new.exists()) == (False, True), "somebody may be writing the new one"
    ShardCache(open_folder(away), 1).open(shards[1]).close()
    assert copies() == {shards[1].sha256}
    assert len(held.read()) == shards[0].bytes, "who has opened it reads on"
    held.close()


def test_who_comes_second_waits_for_the_first(away, monkeypatch):
    shard = read_info(away).shards("train")[0]
    fetched, sizes, arrived = [], [], threading.Semaphore(0)
    blocks = RemoteFolder.blocks

    class Lock(cache.FileLock):
        def acquire(self, *arguments, **named):
            arrived.release()
            return super().acquire(*arguments, **named)

    def when_all_have_come(folder, file):
        fetched.append(file)
        for _ in range(4):
            assert arrived.acquire(timeout=60)
        yield from blocks(folder, file)

    monkeypatch.setattr(cache, "FileLock", Lock)
    monkeypatch.setattr(RemoteFolder, "blocks", when_all_have_come)

    def read():
        with ShardCache(open_folder(away), 2**30).open(shard) as file:
            sizes.append(len(file.read()))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [shard.bytes] * 4
    assert fetched == [shard.name]


def test_the_next_shard_is_fetched_meanwhile(away):
    info = read_info(away)
    with Reader(away, info.shards("train")) as reader:
        reader.expect([2, 0, 1])
        reader.read(2, 0)
        deadline = time.monotonic() + 20
        while len(copies()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert copies() == {digests(away)[2], digests(away)[0]}


# Faults


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(cache, "WAITS", (0.0, 0.0))


def test_missing_and_cut_shards(away, no_waits):
    info, folder = read_info(away), open_folder(away)
    shard = info.shards("train")[1]
    folder.write(shard.name, b"short")
    with pytest.raises(DataError, match=rf"^{name(away)}/{shard.name} has 5 bytes, expected {shard.bytes}; restore"):
        batches(away)
    with (
        Reader(away, info.shards("train")) as reader,
        pytest.raises(
            DataError, match=rf"^{name(away)}/{shard.name} is not what .* \(5 bytes, expected {shard.bytes}\)"
        ),
    ):
        reader.read(1, 0)
    folder.remove(shard.name)
    with pytest.raises(DataError, match=rf"^{name(away)}/{shard.name} is missing, though dataset\.json lists it"):
        batches(away)
    with (
        Reader(away, info.shards("train")) as reader,
        pytest.raises(DataError, match=rf"^{name(away)}/{shard.name} is missing; restore it or build"),
    ):
        reader.read(1, 0)
    assert not list(cache_folder().glob("*.partial"))


def test_a_line_that_breaks_is_tried_again(away, squares, no_waits, monkeypatch):
    blocks, broken = RemoteFolder.blocks, []

    def breaking(folder, file):
        with folder._reaching("read"):
            yield next(blocks(folder, file))[:100]
            broken.append(file)
            raise OSError("connection reset\nby peer")

    monkeypatch.setattr(
        RemoteFolder, "blocks", lambda folder, file: (breaking if len(broken) < 2 else blocks)(folder, file)
    )
    with Reader(away, read_info(away).shards("train")) as reader:
        assert reader.read(0, 0)["__key__"] == "train0000"
    assert len(broken) == 2
    monkeypatch.setattr(RemoteFolder, "blocks", breaking)
    with (
        Reader(away, read_info(away).shards("train")) as reader,
        pytest.raises(ConnectionError, match=rf"^{name(away)} cannot be read \(connection reset\); check the address"),
    ):
        reader.read(1, 0)
    assert len(broken) == 5
    assert not list(cache_folder().glob("*.partial"))


def test_what_is_fetched_ahead_can_be_stopped(away, monkeypatch):
    started = threading.Event()

    def endless(folder, file):
        while True:
            started.set()
            yield b"0"

    monkeypatch.setattr(RemoteFolder, "blocks", endless)
    store, outcome = ShardCache(open_folder(away), 2**30), []

    def fetch():
        try:
            store.open(read_info(away).shards("train")[0])
        except StoppedError:
            outcome.append("stopped")

    thread = threading.Thread(target=fetch)
    thread.start()
    assert started.wait(20)
    store.stop()
    thread.join(20)
    assert outcome == ["stopped"]
    assert not list(cache_folder().glob("*.partial"))


def test_cache_that_cannot_be_written(away, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"/file/kiloseg cannot hold copies of s3://bucket/.*; correct the cause, or set another"
    ):
        batches(away)


LIMITED = """
import resource, signal, sys
from kiloseg.data.reading.reader import Reader
from kiloseg.data.description import read_info
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
with Reader(sys.argv[1], read_info(sys.argv[1]).shards("train")) as reader:
    reader.read(0, 0)
"""


def test_no_room_for_copies(away):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", LIMITED, away], env=environment, capture_output=True, text=True)
    assert re.search(
        r"DataError: \S+/cache/kiloseg cannot hold copies of s3://bucket/\S+ \(.*too large.*\); free some space there, lower "
        r"data\.cache_gib, or set another folder with KILOSEG_CACHE",
        done.stderr,
    ), done.stderr
    assert not list(cache_folder().glob("*.partial"))


def test_a_user_and_a_password_are_kept_out_of_settings():
    for user in ("KEY:SECRET", "KEY"):
        with pytest.raises(
            ValueError, match=r"data\.path = 's3://\.\.\.@bucket/set': expected a URL without user"
        ) as caught:
            Data(path=f"s3://{user}@bucket/set")
        assert "SECRET" not in str(caught.value) and "KEY" not in str(caught.value)
    assert Data(path="s3://bucket/set?region=a").path.endswith("a")
    assert Data(path="a:b@c//[d").path == "a:b@c//[d", "a folder"


def test_other_filesystems_than_s3(squares, tmp_path, monkeypatch):
    """What pyarrow makes of a URL decides; this one speaks no S3."""
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = SubTreeFileSystem(str(squares.parent), LocalFileSystem())
    found = SimpleNamespace(from_uri=lambda url: (local, f"/{squares.name}"))
    monkeypatch.setattr("pyarrow.fs.FileSystem", found)
    assert equal(batches("other://host/set"), batches(squares))
    assert dataclasses.asdict(read_info("other://host/set")) == dataclasses.asdict(read_info(squares))
