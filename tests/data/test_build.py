"""Building goes on where it was stopped, keeps what is finished, mixes with nothing, and says what is wrong."""

import dataclasses
import functools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tyro

from kiloseg.data.description import DatasetInfo, read_info
from kiloseg.data.index import read_index
from kiloseg.data.writing.build import build, finished, plan_shards
from kiloseg.data.writing.current import working_on
from kiloseg.data.writing.output import Output
from kiloseg.data.writing.processes import in_processes
from kiloseg.data.writing.shard import Sample, write_shard
from kiloseg.storage.errors import DataError

CLASSES = 300
TRAIN, VAL, SHARD_SIZE = 23, 4, 4
SHARDS = [*(f"train-{n:06d}.tar" for n in range(6)), "val-000000.tar"]


def numbered(task, *, seed=0, size=16, hold=None, wrong=None):
    """Sample i of a split has many classes from i on. From shard 3 of train on it waits while the file `hold` exists."""
    while hold is not None and task.name >= SHARDS[3] and Path(hold).exists():
        time.sleep(0.02)
    for index in range(task.start, task.stop):
        mask = (np.arange(size * size).reshape(size, size) + index) % CLASSES
        image = np.random.default_rng([seed, index]).integers(0, 256, (size, size, 3), dtype=np.uint8)
        if index == wrong and task.split == "train":
            mask = mask + CLASSES
        yield Sample(key=f"{task.split}{index:05d}", image=image, mask=mask, meta={"index": index})


def described(**changes):
    fields = {
        "name": "numbered",
        "classes": [f"class {c}" for c in range(CLASSES)],
        "background": None,
        "license": "none",
        "command": "tests",
        "recipe": {"seed": 0, "sizes": (TRAIN, VAL)},
    }
    return DatasetInfo(**fields | changes)


def build_numbered(
    out, *, train=TRAIN, seed=0, processes=1, address=None, rebuild=False, make_samples=numbered, **given
):
    output = Output(out=str(out), shard_size=SHARD_SIZE, processes=processes, address=address, rebuild=rebuild)
    tasks = [*plan_shards("train", train, SHARD_SIZE), *plan_shards("val", VAL, SHARD_SIZE)]
    info = described(recipe={"seed": seed, "sizes": (train, VAL)})
    return build(output, info, tasks, functools.partial(make_samples, seed=seed, **given))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A build that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, build_numbered(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A build whose driver, and it alone, was killed when three shards were finished."""
    folder = tmp_path_factory.mktemp("killed") / "set"
    hold = folder.with_name("hold")
    hold.touch()
    source = f"import test_build; test_build.build_numbered({str(folder)!r}, hold={str(hold)!r}, processes=2)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", source], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    try:
        while len(list((folder / ".partial").glob("*.parquet"))) < 3:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) >= 2
        process.send_signal(signal.SIGKILL)
        process.wait()
        while alive := [pid for pid in children if running(pid)]:
            assert time.monotonic() < deadline, f"processes {alive} outlive their driver"
            time.sleep(0.02)
    finally:
        process.kill()
        hold.unlink()
    assert times(folder).keys() == set(SHARDS[:3])
    assert not (folder / "dataset.json").exists()
    return folder


@pytest.fixture
def half(killed, tmp_path):
    """A copy of it with the same times."""
    return shutil.copytree(killed, tmp_path / "set")


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_result_holds_what_was_given(whole, tmp_path):
    folder, info = whole
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "index.parquet", *SHARDS]
    assert read_info(folder) == info
    assert info.recipe == {"seed": 0, "sizes": [TRAIN, VAL], "shard_size": SHARD_SIZE}
    expected = []
    for task in [*plan_shards("train", TRAIN, SHARD_SIZE), *plan_shards("val", VAL, SHARD_SIZE)]:
        shard, rows = write_shard(tmp_path / task.name, numbered(task), num_classes=CLASSES)
        assert shard in info.splits[task.split]
        expected += [{"split": task.split, **row} for row in rows]
    assert (tmp_path / SHARDS[2]).read_bytes() == (folder / SHARDS[2]).read_bytes()
    assert read_index(folder).to_pylist() == [
        {name: row[name] for name in read_index(folder).column_names} for row in expected
    ]
    assert read_index(folder, shard=SHARDS[1])["key"].to_pylist() == [f"train{n:05d}" for n in range(4, 8)]
    assert read_index(folder, "val", shard=SHARDS[1]).num_rows == 0


def test_built_once_and_never_again(whole, capsys):
    folder, info = whole
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build_numbered(folder) == info
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert f"{folder} is up to date: 300 classes, samples 23 train, 4 val, 7 shards, " in printed
    output = Output(out=str(folder), shard_size=SHARD_SIZE)
    assert finished(output, {"seed": 0, "sizes": (TRAIN, VAL)}) == info
    assert finished(output, {"seed": 1, "sizes": (TRAIN, VAL)}) is None
    assert finished(dataclasses.replace(output, shard_size=5), {"seed": 0, "sizes": (TRAIN, VAL)}) is None


def test_killed_build_goes_on_and_keeps_what_is_finished(whole, half, capsys):
    before = times(half)
    info = build_numbered(half, processes=2)
    assert {name: times(half)[name] for name in before} == before
    assert "3 of 7 shards kept from an earlier run" in capsys.readouterr().out
    assert info.digest == whole[1].digest
    assert contents(half) == contents(whole[0])


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 6}])
def test_killed_build_of_another_recipe_is_no_help(half, tmp_path, capsys, change):
    build_numbered(half, **change)
    assert "kept" not in capsys.readouterr().out
    build_numbered(tmp_path / "fresh", **change)
    assert contents(half) == contents(tmp_path / "fresh")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / SHARDS[1]).unlink(),
        lambda folder: (folder / SHARDS[1]).write_bytes(b"short"),
        lambda folder: flip(folder / SHARDS[1]),
        lambda folder: (folder / ".partial" / "train-000001.parquet").unlink(),
        lambda folder: (folder / ".partial" / "train-000001.parquet").write_bytes(b"PAR1 no more"),
        lambda folder: flip(folder / ".partial" / "train-000001.parquet"),
    ],
    ids=["lost", "cut", "changed", "no record", "cut record", "changed record"],
)
def test_damaged_remains_are_built_again(whole, half, damage):
    before = times(half)
    damage(half)
    build_numbered(half)
    after = times(half)
    assert {name for name in before if after[name] == before[name]} == {SHARDS[0], SHARDS[2]}
    assert contents(half) == contents(whole[0])


def test_finished_data_set_that_lost_a_shard_is_built_again(whole, tmp_path):
    build_numbered(tmp_path)
    (tmp_path / SHARDS[4]).unlink()
    build_numbered(tmp_path)
    assert contents(tmp_path) == contents(whole[0])


def test_stopped_before_the_first_and_before_the_last_step(whole, tmp_path):
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "build.json.partial").write_text('{"na')
    build_numbered(tmp_path)
    assert contents(tmp_path) == contents(whole[0])
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "build.json").write_text('{"name": "numbered", "shards": []}')
    build_numbered(tmp_path)
    assert contents(tmp_path) == contents(whole[0])


def test_smaller_recipe_leaves_no_shard_of_the_larger(tmp_path):
    build_numbered(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    info = build_numbered(tmp_path, train=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["dataset.json", "index.parquet", "notes.txt", *SHARDS[:2], SHARDS[-1]]
    )
    assert info.num_samples("train") == 5


# Folders that are not ours

FOREIGN = {
    "a picture": ({"holiday.jpg": "precious"}, "has no dataset.json but holds 'holiday.jpg': expected a new or empty"),
    "shards of somebody": ({SHARDS[0]: "precious"}, f"has no dataset.json but holds '{SHARDS[0]}'"),
    "another data set": (
        {"dataset.json": "other"},
        "holds the data set 'other': expected a new folder or an earlier build of 'numbered'",
    ),
    "another interrupted build": (
        {".partial/build.json": '{"name": "other", "shards": ["a.tar"]}', "a.tar": "precious"},
        "holds the data set 'other'",
    ),
    "no data set at all": ({"dataset.json": '{"rows": 5}'}, "holds a data set that cannot be read ("),
    "another .partial": ({".partial/thesis.txt": "precious"}, ".partial holds no record of a build ("),
    "a list": ({".partial/build.json": "[]"}, ".partial holds no record of a build (TypeError"),
}


@pytest.mark.parametrize(("files", "message"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_not_its_own_is_left_alone(whole, tmp_path, files, message):
    for name, text in files.items():
        if text == "other":
            text = (whole[0] / "dataset.json").read_text().replace('"name": "numbered"', '"name": "other"')
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(DataError, match=re.escape(message) + ".*choose another --out, or empty this folder yourself"):
        build_numbered(tmp_path)
    assert contents(tmp_path) == before


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DataError, match=r"file is a file: expected a folder to write the data set into"):
        build_numbered(tmp_path / "file")
    with pytest.raises(
        DataError, match=r"file/set cannot be written \(.*\); change its permissions, or choose another --out"
    ):
        build_numbered(tmp_path / "file" / "set")
    assert (tmp_path / "file").read_text() == "precious"


def test_folder_that_cannot_be_made():
    with pytest.raises(DataError, match=r"/proc/kiloseg/set cannot be written \(.*choose another --out"):
        build_numbered("/proc/kiloseg/set")


# What goes wrong on the way


def test_fault_of_a_sample_keeps_the_others(whole, tmp_path):
    with pytest.raises(DataError, match=r"train-000004\.tar: sample train00018: mask has class id 3\d\d") as caught:
        build_numbered(tmp_path, wrong=18, processes=2)
    assert re.search(
        r"\d of 7 shards are finished and kept in .*; the same command continues", caught.value.__notes__[0]
    )
    before = times(tmp_path)
    assert SHARDS[0] in before and SHARDS[4] not in before
    assert build_numbered(tmp_path).digest == whole[1].digest
    assert {name: times(tmp_path)[name] for name in before} == before


def limited(out):
    """A disk that is full after the first shard: files may grow to 20,000 bytes only."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    build_numbered(out, make_samples=growing)


def growing(task, **given):
    """Samples of shard 2 are larger than the others."""
    return numbered(task, **given | {"size": 64 if task.name == SHARDS[2] else 16})


def test_full_disk(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    source = f"import test_build; test_build.limited({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(rf"DataError: {tmp_path} cannot be written \(.*File too large.*\); make room there", done.stderr)
    assert "shards are finished and kept" in done.stderr
    assert not (tmp_path / SHARDS[2]).exists() and not list(tmp_path.rglob("*.tar.partial"))
    before = times(tmp_path)
    build_numbered(tmp_path, make_samples=growing)
    assert {name: times(tmp_path)[name] for name in before} == before
    build_numbered(tmp_path / "fresh", make_samples=growing)
    assert read_info(tmp_path).digest == read_info(tmp_path / "fresh").digest


def dying(task, **given):
    """As a process that the system kills for memory."""
    if task.name == SHARDS[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return numbered(task, **given)


def test_death_of_a_process_keeps_what_is_finished(whole, tmp_path):
    with pytest.raises(Exception, match=r"a process was ended from outside.* at one of .*train-000003\.tar") as caught:
        build_numbered(tmp_path, make_samples=dying, processes=2)
    assert "the same command continues from there" in caught.value.__notes__[0]
    assert build_numbered(tmp_path).digest == whole[1].digest


def test_arguments_that_cannot_work(tmp_path):
    tasks = plan_shards("train", 4, 4)
    output = Output(out=str(tmp_path), processes=2)
    with pytest.raises(ValueError, match="data set numbered has no shards to build"):
        build(output, described(), [], numbered)
    with pytest.raises(TypeError, match=r"a recipe must consist of JSON types \(.*PosixPath is not"):
        build(output, described(recipe={"root": tmp_path}), tasks, numbered)
    with pytest.raises(TypeError, match=r"cannot be sent to another process .* expected a function of a module"):
        build(output, described(), tasks, lambda task: numbered(task))
    with pytest.raises(ValueError, match="out = '': expected a folder or a URL"):
        Output(out="")
    for name in ("shard_size", "processes"):
        with pytest.raises(ValueError, match=f"{name} = 0: expected at least 1"):
            Output(out="unused", **{name: 0})


# Arguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Output):
    """A builder's own."""

    root: Path
    num_classes: int = 19
    size: float = 0.5
    official: bool = False
    crowd: bool = True


def test_command_gives_the_same_settings():
    arguments = Arguments(
        out="/some where", root=Path("/archives"), size=0.25, official=True, crowd=False, shard_size=7, processes=3
    )
    words = shlex.split(arguments.command("datasets/one.py"))
    assert words[:2] == ["python", "datasets/one.py"]
    assert dataclasses.replace(tyro.cli(Arguments, args=words[2:]), processes=3) == arguments
    assert arguments.settings() == {
        "shard_size": 7,
        "root": "/archives",
        "num_classes": 19,
        "size": 0.25,
        "official": True,
        "crowd": False,
    }
    json.dumps(arguments.settings())


# Memory


def many_classes(task):
    for index in range(task.start, task.stop):
        mask = np.random.default_rng(index).permutation(CLASSES)[:256].reshape(16, 16)
        yield Sample(key=f"k{index}", image=np.zeros((16, 16, 3), np.uint8), mask=mask)


def peak_of_driver(out, count):
    """Builds `count` samples of 256 classes each; the driver's own peak, in MiB."""
    build(Output(out=out, shard_size=250, processes=2), described(), plan_shards("train", count, 250), many_classes)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def test_memory_of_the_driver_does_not_grow_with_samples(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    peaks = []
    for count in (250, 2000):
        source = f"import test_build; test_build.peak_of_driver({str(tmp_path / str(count))!r}, {count})"
        done = subprocess.run(
            [sys.executable, "-c", source], env=environment, capture_output=True, text=True, check=True
        )
        peaks.append(float(done.stdout.split()[-1]))
    # Rows as Python objects would take 2 x 256 numbers of 36 bytes for each of 1,750 samples more: 31 MiB.
    assert peaks[1] - peaks[0] < 12, peaks


def ended_from_outside(task):
    working_on(f"photo {task}.jpg")
    if task == 3:
        os.kill(os.getpid(), 9)
    return task


def dying_at_a_sample(task, **given):
    """Dies while the sample after one of shard 3 is made."""
    for sample in numbered(task, **given):
        yield sample
        if sample.key == "train00013":
            os.kill(os.getpid(), signal.SIGKILL)


def failing_at_a_sample(task, **given):
    for sample in numbered(task, **given):
        if sample.key == "train00013":
            raise MemoryError
        yield sample


def test_the_sample_at_which_a_process_ends_is_named(tmp_path):
    with pytest.raises(DataError, match=r"while the processes worked on .*the sample after train00013.*look at these"):
        build_numbered(tmp_path / "dying", make_samples=dying_at_a_sample, processes=2)
    for processes in (1, 2):
        with pytest.raises(MemoryError) as caught:
            build_numbered(tmp_path / f"failing{processes}", make_samples=failing_at_a_sample, processes=processes)
        assert "train-000003.tar: this happened at the sample after train00012" in caught.value.__notes__


def test_a_process_that_is_ended_from_outside_is_a_clear_error():
    with pytest.raises(
        DataError, match=r"a process was ended from outside, .* one of [0-4].*worked on photo 3.jpg; lower --processes"
    ):
        list(in_processes(ended_from_outside, range(5), processes=2))
