"""Checkpoints are whole or absent, the newest whole one is taken, and no code in a file is ever run."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kiloseg.config import Model
from kiloseg.models import Segmenter
from kiloseg.training.checkpoint import load_checkpoint, load_newest, save_checkpoint

STATE = {"model": {"weight": torch.arange(6.0)}, "config": {"model.arch": "fpn", "data.num_classes": None}, "loss": 0.5}


def test_checkpoint_round_trips(tmp_path):
    path = save_checkpoint(tmp_path / "new" / "folder", 12, STATE, keep=1)
    assert path == tmp_path / "new" / "folder" / "step-00000012.pt"
    assert [entry.name for entry in path.parent.iterdir()] == ["step-00000012.pt"]
    state = load_checkpoint(path)
    assert state["step"] == 12
    assert state["config"] == STATE["config"]
    assert state["loss"] == 0.5
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    assert load_newest(path.parent)["step"] == 12
    assert load_newest(tmp_path / "empty") is None


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_only_the_newest_are_kept(tmp_path, keep):
    (tmp_path / "notes.txt").write_text("not ours")
    for step in (9, 10, 99, 100):
        save_checkpoint(tmp_path, step, STATE, keep=keep)
    steps = sorted(int(path.stem[5:]) for path in tmp_path.glob("step-*.pt"))
    assert steps == [9, 10, 99, 100][-keep:]
    assert (tmp_path / "notes.txt").exists()
    assert load_newest(tmp_path)["step"] == 100


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_written_is_never_dropped(tmp_path, keep):
    for step in (1000, 2000):
        save_checkpoint(tmp_path, step, STATE, keep=keep)
    assert save_checkpoint(tmp_path, 100, STATE, keep=keep).exists()


WRITE_WITH_LIMIT = """
import resource, sys, torch
from pathlib import Path
from kiloseg.config import Model
from kiloseg.models import Segmenter
from kiloseg.training.checkpoint import save_checkpoint
directory = Path(sys.argv[1])
save_checkpoint(directory, 1, {"weight": torch.ones(10)}, keep=1)
for limit in (500_000, 0):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    for step in (1, 2):
        try:
            save_checkpoint(directory, step, {"weight": torch.ones(300_000)}, keep=1)
        except OSError as error:
            print(error)
"""


def test_checkpoint_that_finds_no_room_leaves_the_older_ones(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WRITE_WITH_LIMIT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "platform")},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    messages = done.stdout.splitlines()
    assert len(messages) == 4
    for message, step in zip(messages, [1, 2, 1, 2], strict=True):
        assert message.startswith(f"checkpoint {tmp_path}/step-0000000{step}.pt could not be written (")
        assert message.endswith("free some disk space and resume; older checkpoints are kept")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.pt"]
    assert torch.equal(load_checkpoint(tmp_path / "step-00000001.pt")["weight"], torch.ones(10))


def test_checkpoint_over_a_folder_of_that_name_names_it(tmp_path):
    save_checkpoint(tmp_path, 1, STATE, keep=2)
    (tmp_path / "step-00000002.pt").mkdir()
    with pytest.raises(OSError, match=re.escape(f"checkpoint {tmp_path}/step-00000002.pt could not be written (")):
        save_checkpoint(tmp_path, 2, STATE, keep=2)
    assert load_checkpoint(tmp_path / "step-00000001.pt")["step"] == 1
    assert not list(tmp_path.glob("*.partial"))


def touches(path):
    """An object whose pickle creates a file when it is loaded."""

    class CreatesFile:
        def __reduce__(self):
            return (Path.touch, (path,))

    return CreatesFile()


@pytest.mark.parametrize("writer", ["torch", "torch before 1.6", "pickle"])
def test_code_in_a_checkpoint_is_never_run(tmp_path, writer):
    created, path = tmp_path / "created", tmp_path / "step-00000001.pt"
    content = {"format": "kiloseg-checkpoint-1", "step": 1, "model": touches(created)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
        pickle.loads(path.read_bytes())
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
        torch.load(path, weights_only=False)
    assert created.exists(), "the file does harm where code is run"
    created.unlink()
    with pytest.raises(ValueError, match=re.escape(f"checkpoint {path} is damaged (UnpicklingError)")):
        load_checkpoint(path)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="could not be loaded"):
        Segmenter(Model(backbone="test_resnet", weights=str(weights)), 7)
    assert not created.exists()


@pytest.mark.parametrize("content", [{"step": 1}, {"format": "other", "step": 1}, [1, 2], torch.zeros(3)], ids=str)
def test_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "step-00000001.pt"
    torch.save(content, path)
    message = f"{path} is not a checkpoint of kiloseg (expected format 'kiloseg-checkpoint-1')"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_checkpoint(path)


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_damaged_checkpoint_is_named(tmp_path, part):
    path = save_checkpoint(tmp_path, 1, STATE | {"more": torch.ones(1000)}, keep=1)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(
        ValueError, match=re.escape(f"checkpoint {path} is damaged (") + ".*use the checkpoint before it"
    ):
        load_checkpoint(path)


def test_missing_checkpoint_is_not_called_damaged(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_checkpoint(tmp_path / "step-00000001.pt")
    assert str(tmp_path / "step-00000001.pt") in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_newest_whole_checkpoint_is_taken(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, STATE, keep=9)
    (tmp_path / "step-00000003.pt").write_bytes(b"cut")
    (tmp_path / "step-00000004.partial").write_bytes(b"left by a crash")
    with pytest.warns(UserWarning, match="step-00000003.pt is damaged") as warned:
        assert load_newest(tmp_path)["step"] == 2
    assert len(warned) == 1
