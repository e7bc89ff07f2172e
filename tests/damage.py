"""Shards made bad, and commands that a message says."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

from kiloseg.data import verify
from kiloseg.data.description import read_info


def spoil(shard):
    """Overwrites the image of every second sample in a shard; returns their keys."""
    with tarfile.open(shard) as tar:
        images = [member for member in tar if member.name.endswith((".jpg", ".png")) and ".mask." not in member.name]
    with shard.open("r+b") as file:
        for member in images[::2]:
            file.seek(member.offset_data)
            file.write(bytes(member.size))
    return [member.name.partition(".")[0] for member in images[::2]]


def flip_a_byte(shard):
    """Changes a byte that only its digest shows: in the padding behind the first header."""
    content = bytearray(shard.read_bytes())
    content[500] ^= 255
    shard.write_bytes(content)


def paste(command, cwd):
    """Runs a command that a message printed, in a shell in another folder than the checkout; returns what it did."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(Path(__file__).parents[1] / "platform")}
    return subprocess.run(
        command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def built_again_as_verify_says(folder, capsys, cwd):
    """Damages a data set unnoticeably, does what verify says about that, and checks that it helped."""
    info = read_info(folder)
    flip_a_byte(Path(folder) / info.splits["train"][0].name)
    capsys.readouterr()
    assert verify.main(verify.Arguments(directory=str(folder), processes=1)) == 1
    _, found, command = capsys.readouterr().out.strip().splitlines()[-1].partition("build the data set again: ")
    assert found
    done = paste(command, cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "up to date" not in done.stdout
    assert verify.verify(str(folder), processes=1) == []
    assert read_info(folder).digest == info.digest
