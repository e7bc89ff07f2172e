"""Real studies on real processes, each struck by one fault, end as the study that nothing happened to."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas
import psutil
import pytest
from damage import spoil
from studies import (
    ROOT,
    STEPS,
    TRAIN_WORKER,
    TRIAL_ACTOR,
    VALIDATE_EVERY,
    Nodes,
    RunningStudy,
    Server,
    assert_same,
    outcome,
    runs_of_trials,
    tracked,
)

from kiloseg.storage.filesystems import inside, open_folder

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3000)]

REPORTED = f"step {VALIDATE_EVERY}/{STEPS}"


@pytest.fixture(scope="session")
def cluster():
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture
def nodes(cluster):
    cluster.need(2)
    return cluster


@pytest.fixture
def start(nodes, squares, tmp_path):
    """Starts a study, by default on `squares` with its runs in `tmp_path`; none outlives its test."""
    started = []

    def start(*more, data=squares, runs=tmp_path / "runs", **keywords):
        log = tmp_path / f"{len(started)}.log"
        started.append(RunningStudy(data, runs, *more, log=log, address=nodes.address, **keywords))
        return started[-1]

    yield start
    for study in started:
        study.kill()


@pytest.fixture(scope="session")
def reference(cluster, squares, tmp_path_factory):
    """What comes of the study when nothing happens to it."""
    cluster.need(2)
    folder = tmp_path_factory.mktemp("reference")
    study = RunningStudy(squares, folder / "runs", log=folder / "log", address=cluster.address)
    try:
        assert study.end() == 0, study.output
    finally:
        study.kill()
    assert not study.steps_gone_on_from()
    return outcome(folder / "runs")


def strike(pids, number=signal.SIGKILL):
    assert pids, "there is nothing to strike"
    for pid in pids:
        os.kill(pid, number)


def assert_interrupted(study, end=STEPS):
    """The fault came neither before a checkpoint nor after the end, else it would prove nothing."""
    steps = study.steps_gone_on_from()
    assert any(0 < step < end for step in steps), f"gone on from {steps}:\n{study.output}"


@pytest.mark.parametrize("title", [TRAIN_WORKER, TRIAL_ACTOR])
def test_death_of_a_process_of_each_trial(start, nodes, reference, tmp_path, title):
    study = start()
    study.until(REPORTED)
    strike(nodes.processes(title))
    assert study.end() == 0, study.output
    assert_interrupted(study)
    assert_same(outcome(tmp_path / "runs"), reference)


def test_death_of_a_node(start, nodes, reference, tmp_path):
    study = start()
    study.until(REPORTED)
    # Of the trial that has a checkpoint: the other may be far behind, and would begin anew.
    nodes.kill(nodes.of(nodes.worker(study.trial_at(REPORTED))))
    nodes.need(2)
    assert study.end() == 0, study.output
    assert_interrupted(study)
    assert_same(outcome(tmp_path / "runs"), reference)


def test_death_of_the_study(start, reference, tmp_path):
    study = start()
    study.until(REPORTED, times=2)
    study.kill()
    resumed = start("--resume")
    assert resumed.end() == 0, resumed.output
    assert_interrupted(resumed)
    assert_same(outcome(tmp_path / "runs"), reference)


def test_interruption_by_the_user(start, reference, tmp_path):
    """As by Ctrl-C, which reaches all that the terminal has started."""
    study = start()
    study.until(REPORTED, times=2)
    study.kill(signal.SIGINT)
    assert study.end(60) != 0
    assert "KeyboardInterrupt" in study.output
    assert "are kept: --resume continues it" in study.output
    resumed = start("--resume")
    assert resumed.end() == 0, resumed.output
    assert_interrupted(resumed)
    assert_same(outcome(tmp_path / "runs"), reference)


def test_notice_of_a_spot_machine(start, nodes, reference, tmp_path):
    """Training leaves with a checkpoint of the step at which it was told to, not of the last validation."""
    study = start()
    study.until(REPORTED)
    strike(nodes.processes(TRAIN_WORKER), signal.SIGTERM)
    assert study.end() == 0, study.output
    left = {int(path.stem[5:]) for path in (tmp_path / "runs" / "ray").glob("*/train/*/left/step-*.pt")}
    assert left & set(study.steps_gone_on_from()), study.output
    assert_same(outcome(tmp_path / "runs"), reference)


def test_truncated_checkpoint(start, reference, tmp_path):
    study = start()
    study.until(f"step {2 * VALIDATE_EVERY}/{STEPS}")
    study.kill()
    newest = {}
    for path in sorted((tmp_path / "runs" / "ray").glob("*/train/*/*/step-*.pt"), key=lambda path: path.name):
        newest[path.parents[2]] = path
    for path in newest.values():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    resumed = start("--resume")
    assert resumed.end() == 0, resumed.output
    assert_interrupted(resumed)
    damaged = max(int(path.stem[5:]) for path in newest.values())
    assert max(resumed.steps_gone_on_from()) < damaged
    assert_same(outcome(tmp_path / "runs"), reference)


@pytest.fixture
def small_disk():
    """A filesystem of 300 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="kiloseg-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def test_full_disk(start, reference, small_disk):
    runs = small_disk / "runs"
    study = start("--retries", 0, runs=runs)
    study.until(REPORTED, times=2)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    study.end()
    assert "No space left" in study.output
    study.kill()
    ballast.unlink()
    resumed = start("--resume", runs=runs)
    assert resumed.end() == 0, resumed.output
    assert_interrupted(resumed)
    assert_same(outcome(runs), reference)


def test_shard_that_breaks_in_an_epoch(start, reference, squares, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    shard = data / "train-000002.tar"
    sound = shard.read_bytes()
    study = start("--retries", 0, data=data)
    study.until(REPORTED, times=2)
    keys = spoil(shard)
    assert study.end() != 0 or "failed" in study.output
    named = re.search(r"train-000002\.tar: sample (\w+) cannot be decoded", study.output)
    assert named and named[1] in keys, study.output

    shard.write_bytes(sound)
    resumed = start("--resume", data=data)
    assert resumed.end() == 0, resumed.output
    assert_interrupted(resumed)
    assert_same(outcome(tmp_path / "runs"), reference)


def test_bad_samples_are_left_out_where_that_is_allowed(start, squares, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    keys = spoil(data / "train-000002.tar")
    study = start("--data.max-bad-samples", len(keys), data=data)
    assert study.end() == 0, study.output
    assert set(outcome(tmp_path / "runs").table["outcome"]) == {"finished"}
    named = re.findall(r"trial (\w+)  leaves out: .*train-000002\.tar: sample (\w+) cannot be decoded", study.output)
    assert len(set(named)) == len(named) == 2 * len(keys), study.output
    assert {key for _, key in named} == set(keys)
    for run in runs_of_trials(f"sqlite:///{tmp_path}/runs/mlflow.db"):
        assert run.data.metrics["train/bad_samples"] == len(keys)
        assert all(key in run.data.tags["bad_samples"] for key in keys)


HUNGRY = """
import sys
from kiloseg.config import Config
from kiloseg.overrides import from_flat
from kiloseg.tuning.search import Search, search
from kiloseg.tuning.space import Space, choice
from kiloseg.tuning.summary import write_summary
base = from_flat({
    "data.path": sys.argv[1], "data.crop": 64, "data.loader_workers": 0, "model.arch": "fpn",
    "model.backbone": "test_resnet", "loss.negatives.kind": "all", "trainer.steps": 4, "trainer.batch_size": 8,
    "trainer.validate_every": 2,
})
dims = [4, 2_000_000]
with search(
    Search(name="hungry", num_trials=2, early_stopping=False, runs=sys.argv[2]),
    Space(base, (choice("model.embed_dim", dims),)), first=[{"model.embed_dim": dim} for dim in dims], script="tests",
) as result:
    write_summary(result.rows, result.folder, result.run)
"""


def test_trial_out_of_memory(nodes, squares, tmp_path):
    """Processes that train may have 6 GiB of their own, of which torch takes 2.5; one trial's feature maps need 16."""
    log = tmp_path / "log"
    with log.open("w") as file:
        study = subprocess.Popen(
            [sys.executable, "-c", HUNGRY, str(squares), str(tmp_path / "runs")],
            env=os.environ | {"PYTHONPATH": str(ROOT / "platform"), "RAY_ADDRESS": nodes.address},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    limited = set()
    deadline = time.monotonic() + 600
    try:
        while study.poll() is None and time.monotonic() < deadline:
            for pid in set(nodes.processes(TRAIN_WORKER)) - limited:
                # Not of its address space, of which torch's libraries take 10 GiB while they are loaded.
                resource.prlimit(pid, resource.RLIMIT_DATA, (6 * 2**30, 6 * 2**30))
                limited.add(pid)
            time.sleep(0.2)
        assert study.wait(10) == 0, log.read_text()
    finally:
        study.kill()
    assert len(limited) >= 2
    (folder,) = (tmp_path / "runs" / "studies").iterdir()
    table = pandas.read_csv(folder / "trials.csv").set_index("model.embed_dim")
    assert dict(table["outcome"]) == {4: "finished", 2_000_000: "oom"}, log.read_text()
    assert table.loc[4, "step"] == 4


NEIGHBOR = """
import sys, time
held = bytearray(int(sys.argv[1]))
for page in range(0, len(held), 4096):
    held[page] = 1
print("held", flush=True)
time.sleep(1000)
"""


def memory_in_use():
    memory = psutil.virtual_memory()
    return memory.total - memory.available


def test_neighbor_that_takes_the_memory(squares, tmp_path):
    """Ray's memory monitor kills processes of the study for as long as another process holds what is left."""
    total = psutil.virtual_memory().total
    limit = memory_in_use() + 6 * 2**30
    environment = {"RAY_memory_usage_threshold": f"{limit / total:.4f}", "RAY_memory_monitor_refresh_ms": "250"}
    steps = 8 * STEPS  # on a fast machine others are trained before the neighbor has taken what it takes
    study = RunningStudy(
        squares, tmp_path / "runs", "--trainer.steps", steps, log=tmp_path / "log", environment=environment
    )
    neighbor = None
    try:
        study.until(f"step {VALIDATE_EVERY}/{steps}")
        more = limit - memory_in_use() + 2**30
        assert more > 0, "the study itself took what was left for it"
        command = [sys.executable, "-c", NEIGHBOR, str(more)]
        neighbor = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert neighbor.stdout.readline() == b"held\n"
        study.until("lost a process to the memory monitor", seconds=120)
        time.sleep(10)  # nothing starts again meanwhile, or it would be killed
        killed = study.output.count("lost a process to the memory monitor")
        neighbor.kill()
        assert study.end() == 0, study.output
    finally:
        study.kill()
        if neighbor is not None:
            neighbor.kill()
            neighbor.communicate()
    assert killed <= 2, "each of the two trials once"
    assert "Traceback" not in study.output
    assert_interrupted(study, steps)
    found = outcome(tmp_path / "runs")
    assert set(found.table["outcome"]) == {"finished"}
    assert set(found.table["step"]) == {steps}
    for numbers in found.numbers.values():
        assert {len(values) for values in numbers.values()} == {1}


def test_two_studies_of_one_name(start, reference, tmp_path):
    runs = tmp_path / "runs"
    both = start(), start()
    both[0].until("starts (1 of 2)")
    both[1].until("starts (1 of 2)")
    # Stopped, they do not come to their end while the third is getting ready.
    for study in both:
        study.process.send_signal(signal.SIGSTOP)
    refused = start("--resume")
    code = refused.end()
    for study in both:
        study.process.send_signal(signal.SIGCONT)
    assert code != 0
    assert re.search(r"study tune_embed_dim-[\w-]+ is being run by process \d+ of this machine", refused.output)
    for study in both:
        assert study.end() == 0, study.output
    folders = list((runs / "studies").iterdir())
    assert len(folders) == 2
    for folder in folders:
        table = pandas.read_csv(folder / "trials.csv").set_index("loss.negatives.kind").sort_index()
        pandas.testing.assert_series_equal(table["val/miou"], reference.table["val/miou"], rtol=1e-5)
    numbers = tracked(f"sqlite:///{runs}/mlflow.db")
    for kind, points in reference.numbers.items():
        assert {point: len(values) for point, values in numbers[kind].items()} == dict.fromkeys(points, 2)


# MLflow as a server, runs in an object store


@pytest.fixture
def tracking(tmp_path):
    """An MLflow server, on SQLite: what it keeps its numbers in is tested elsewhere."""
    server = Server(tmp_path / "mlflow", f"sqlite:///{tmp_path}/server.db")
    yield server
    server.kill()


def test_tracking_server_that_comes_back_during_the_study(start, tracking, reference, tmp_path):
    study = start(environment={"MLFLOW_TRACKING_URI": tracking.uri})
    study.until(REPORTED)
    tracking.kill()
    study.until(f"step {3 * VALIDATE_EVERY}/{STEPS}")
    tracking.start()
    assert study.end() == 0, study.output
    assert "the study continues, and its numbers wait in" in study.output
    assert "has not accepted" not in study.output
    assert_same(outcome(tmp_path / "runs", tracking.uri), reference)


def test_tracking_server_that_comes_back_after_the_study(start, tracking, reference, tmp_path):
    study = start(environment={"MLFLOW_TRACKING_URI": tracking.uri})
    study.until(REPORTED)
    tracking.kill()
    assert study.end() == 0, study.output
    assert "--resume delivers them" in study.output
    tracking.start()
    resumed = start("--resume", environment={"MLFLOW_TRACKING_URI": tracking.uri})
    assert resumed.end() == 0, resumed.output
    assert_same(outcome(tmp_path / "runs", tracking.uri), reference)


@pytest.fixture
def bucket(server, tmp_path):
    """URL of a folder on a server that speaks S3; another for each test."""
    return f"s3://bucket/{tmp_path.name}/runs{server}"


def test_runs_in_an_object_store(start, tracking, bucket, reference, tmp_path):
    """Killed in one folder and resumed in another, with nothing of the first."""
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
    environment = {"MLFLOW_TRACKING_URI": tracking.uri}
    study = start(runs=bucket, environment=environment | {"TMPDIR": str(folders[0])}, cwd=folders[0])
    study.until(REPORTED, times=2)
    study.kill()
    shutil.rmtree(folders[0])
    resumed = start("--resume", runs=bucket, environment=environment, cwd=folders[1])
    assert resumed.end() == 0, resumed.output
    assert_interrupted(resumed)
    assert_same(outcome(bucket, tracking.uri), reference)
    assert not list(folders[1].iterdir())
    assert open_folder(inside(bucket, "ray")).entries()


def test_runs_in_an_object_store_need_a_server(start, bucket):
    study = start(runs=bucket)
    assert study.end() != 0
    assert "set MLFLOW_TRACKING_URI to a tracking server" in study.output
