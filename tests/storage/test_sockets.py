"""Sockets of processes where TMPDIR is as long as batch jobs make it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kiloseg.storage import sockets

SCRIPT = """
import sys
from kiloseg.config import Data
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import TrainBatches, validation_batches

if __name__ == "__main__":
    data = Data(path=sys.argv[1], crop=64, loader_workers=2, val_batch_size=3)
    info = read_info(data.path)
    print(sum(len(batch.images) for batch in validation_batches(data, info)))
    print(sum(1 for _ in TrainBatches(data, info, batch_size=6, seed=0).epoch(0)))
"""


@pytest.fixture
def long_folder(tmp_path):
    folder = tmp_path / ("job" * 30) / ("scratch" * 5)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("length", ["short", "long"])
def test_loader_processes_work_whatever_the_length_of_tmpdir(squares, long_folder, length):
    folder = str(long_folder) if length == "long" else tempfile.gettempdir()
    before = set(Path("/tmp").glob("kiloseg-sockets-*"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(squares)],
        env=os.environ | {"TMPDIR": folder, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == ["11", "7"], done.stderr
    assert "AF_UNIX" not in done.stderr
    assert set(Path("/tmp").glob("kiloseg-sockets-*")) <= before, "folders of sockets are removed"


def test_a_folder_is_made_only_where_it_is_needed(long_folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert sockets.short_folder("kiloseg-", needs=60) is None
    monkeypatch.setattr(tempfile, "tempdir", str(long_folder))
    folder = sockets.short_folder("kiloseg-", needs=60)
    assert folder is not None and folder.is_dir() and len(str(folder)) + 60 <= sockets.LONGEST_PATH
    folder.rmdir()


def test_no_folder_at_all_is_a_sentence(long_folder, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(long_folder))

    def refused(**keywords):
        raise PermissionError("read-only")

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with pytest.raises(
        ValueError, match=r"TMPDIR = .*jobjob.* is too long.*set TMPDIR to a folder .* at most 47 bytes"
    ):
        sockets.short_folder("kiloseg-", needs=60)
