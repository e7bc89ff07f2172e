"""MLflow on PostgreSQL and on SQLite under eight writers at once, and a server that dies and comes back."""

import contextlib
import functools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from damage import paste
from mlflow import MlflowClient
from studies import Server

from kiloseg import cli
from kiloseg.tracking.delivery import Delivery
from kiloseg.tracking.messages import DELIVERED, LINES
from kiloseg.tracking.runs import Tracker
from kiloseg.tracking.services import NotStartedError, Postgres

ROOT = Path(__file__).parents[2]

WRITERS, REPORTS = 8, 25


@pytest.fixture(scope="module")
def database():
    """PostgreSQL, in a folder that the user it runs as can reach."""
    folder = Path(tempfile.mkdtemp(prefix="kiloseg-services-"))
    folder.chmod(0o755)
    try:
        postgres = Postgres(folder / "postgres")
    except NotStartedError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))
    yield folder, postgres
    postgres.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(database):
    folder, postgres = database
    server = Server(folder, postgres.uri)
    yield server
    server.kill()


WRITE = """
import os, sys
from pathlib import Path
from kiloseg.tracking.delivery import Delivery
from kiloseg.tracking.runs import Tracker
folder, writers, reports = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def write(name):
    tracker = Tracker.open("eight", folder)
    delivery = Delivery(folder / name, tracker.study_run(name, {}, {}))
    run = delivery.trial(f"trial of {name}")
    run.begin({"writer": name})
    for step in range(reports):
        run.log_metrics({"val/miou": step / reports, "train/loss": 1 / (step + 1)}, step=step)
    run.end("FINISHED")
    delivery.study.end("FINISHED")
    delivery.close(patience_s=500)

for number in range(writers):
    if not os.fork():
        write(f"writer {number}")
        sys.exit()
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(writers)]
print("exit codes", *codes)
"""
"""The writers are processes of their own, which only their imports have had in common."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["server", "sqlite"])
def test_eight_studies_write_at_once(request, tmp_path, kind):
    """Into a database that does not exist when they begin, and none is told that it is locked."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "platform")}
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    if kind == "server":
        uri = environment["MLFLOW_TRACKING_URI"] = request.getfixturevalue("server").uri
    command = [sys.executable, "-c", WRITE, str(tmp_path), str(WRITERS), str(REPORTS)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=550)
    finally:
        with contextlib.suppress(ProcessLookupError):  # they have all ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert output.splitlines()[-1] == " ".join(["exit codes", *["0"] * WRITERS]), output
    assert "locked" not in output and "does not answer" not in output, output
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("eight").experiment_id])
    trials = [run for run in found if "writer" in run.data.params]
    assert len(found) == 2 * WRITERS
    assert {run.data.params["writer"] for run in trials} == {f"writer {number}" for number in range(WRITERS)}
    for run in trials:
        for name in ("val/miou", "train/loss"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert sorted(steps) == list(range(REPORTS))


def history(client, run, name="val/miou"):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def trial_of(client, experiment):
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    (run,) = (run for run in found if "kiloseg.trial" in run.data.tags)
    return run


def test_server_that_dies_and_comes_back(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    tracker = Tracker.open("away", None)
    delivery = Delivery(tmp_path, tracker.study_run("study", {}, {}))
    run = delivery.trial("one")
    run.begin({"data.crop": 64})
    run.log_metrics({"val/miou": 0.0}, step=0)
    assert delivery.flush(100)
    server.kill()
    begin = time.monotonic()
    for step in range(1, 50):
        run.log_metrics({"val/miou": step / 50}, step=step)
    run.log_table({"name": ["a", "b"], "iou": [0.5, None]}, "iou.json")
    run.end("FINISHED")
    assert time.monotonic() - begin < 5, "nobody waits for a server that is away"
    assert not delivery.flush(8)
    assert "MLflow at http://127.0.0.1" in caplog.text and "the study continues" in caplog.text
    server.start()
    assert delivery.flush(100)
    delivery.close()
    client = MlflowClient(server.uri)
    found = trial_of(client, "away")
    assert history(client, found) == [(step, step / 50) for step in range(50)]
    assert found.info.status == "FINISHED"
    assert "iou.json" in {file.path for file in client.list_artifacts(found.info.run_id)}


def test_process_that_dies_leaves_its_numbers_to_the_next(server, tmp_path, monkeypatch):
    """Also if it died after MLflow had taken a message and before that was written down."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    tracker = Tracker.open("deaths", None)
    study = tracker.study_run("study", {}, {})
    delivery = Delivery(tmp_path, study)
    run = delivery.trial("one")
    run.begin({"data.crop": 64})
    for step in range(5):
        run.log_metrics({"val/miou": step / 10}, step=step)
    run.log_table({"name": ["a", "b"]}, "iou.json")
    assert delivery.flush(100)
    delivery.close()
    # As a death in the middle of a line, long before the newest mark, leaves them.
    lines = (tmp_path / LINES).read_bytes()
    (tmp_path / DELIVERED).write_text(str(lines.index(b"\n", len(lines) // 3) + 1))
    (tmp_path / LINES).write_bytes(lines + b'{"kind": "metrics", "trial": "one", "poi')

    again = Delivery(tmp_path, study)
    run = again.trial("one")
    # A trial that was resumed says again what it had said, with other speeds perhaps.
    run.log_points([("val/miou", step / 10, step) for step in range(7)])
    run.end("FINISHED")
    again.close()
    client = MlflowClient(server.uri)
    found = trial_of(client, "deaths")
    assert history(client, found) == [(step, step / 10) for step in range(7)]
    assert found.data.params == {"data.crop": "64"}
    table = json.loads(Path(client.download_artifacts(found.info.run_id, "iou.json", str(tmp_path))).read_text())
    assert table == {"columns": ["name"], "data": [["a"], ["b"]]}


def test_message_that_mlflow_refuses_does_not_hold_up_the_others(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    delivery = Delivery(tmp_path, Tracker.open("refusal", None).study_run("study", {}, {}))
    delivery.study.log_metrics({"a name with $ in it": 1.0}, step=0)
    delivery.study.log_file(tmp_path / "gone.png")
    delivery.study.log_metrics({"best/miou": 0.5}, step=0)
    assert delivery.flush(100)
    delivery.close()
    assert "MLflow refuses metrics" in caplog.text
    assert "MLflow refuses file" in caplog.text


def test_artifact_that_cannot_be_stored_does_not_hold_up_the_numbers(server, tmp_path, caplog, monkeypatch):
    """Its place may be another than MLflow's own, and refuse it in words of its own."""
    client = MlflowClient(server.uri)
    tracker = Tracker(uri=server.uri, experiment_id=client.create_experiment("no place", "file:///sys/kiloseg"))
    delivery = Delivery(tmp_path, tracker.study_run("study", {}, {}))
    monkeypatch.setattr("kiloseg.tracking.delivery.ATTEMPTS", 3)
    delivery.study.log_table({"name": ["a"]}, "iou.json")
    delivery.study.log_metrics({"best/miou": 0.5}, step=0)
    assert delivery.flush(100)
    delivery.close()
    assert "MLflow refuses table" in caplog.text
    (run,) = client.search_runs([tracker.experiment_id])
    assert run.data.metrics == {"best/miou": 0.5}


def test_line_that_a_full_disk_cut_short_is_not_left_in_the_file(tmp_path, caplog, monkeypatch):
    """A limit on the size of files is a disk that is full: some bytes are written, then none."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker.open("cut", tmp_path)
    delivery = Delivery(tmp_path / "study", tracker.study_run("study", {}, {}))
    delivery.study.log_metrics({"best/miou": 0.25}, step=0)
    assert delivery.flush(100)
    before = delivery.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        delivery.study.set_tags({"error": "no room " * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free some disk space" in caplog.text
    assert delivery.path.read_bytes() == before
    delivery.study.log_metrics({"best/miou": 0.5}, step=1)
    assert delivery.flush(100)
    delivery.close()
    assert [json.loads(line)["kind"] for line in delivery.path.read_bytes().splitlines()] == ["metrics", "metrics"]
    (run,) = tracker.client.search_runs([tracker.experiment_id])
    assert run.data.metrics == {"best/miou": 0.5}
    assert run.data.tags["error"].startswith("no room"), "it is delivered all the same"


def test_line_that_is_damaged_is_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker.open("damaged", tmp_path)
    folder = tmp_path / "study"
    folder.mkdir()
    whole = b'{"kind": "metrics", "trial": null, "points": [["best/miou", 0.5, 0]], "time_ms": 1}\n'
    (folder / LINES).write_bytes(b'{"kind": "tags", "tri' + whole + whole)
    delivery = Delivery(folder, tracker.study_run("study", {}, {}))
    assert delivery.flush(100)
    delivery.close()
    assert "is damaged and is left out" in caplog.text
    (run,) = tracker.client.search_runs([tracker.experiment_id])
    assert run.data.metrics == {"best/miou": 0.5}


def test_without_a_folder_of_this_machine_a_server_is_needed(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI to a tracking server"):
        Tracker.open("away", None)


def test_what_the_command_says_helps_until_the_services_run(database, tmp_path):
    """A port that is taken, and as root a user who does not exist and a folder that PostgreSQL's user may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="kiloseg-services-"))  # nobody else may enter it
    words = ["services", "--folder", str(folder / "my services"), "--workers", "1"]
    try:
        with socket.create_server(("127.0.0.1", 0)) as other:
            with pytest.raises(SystemExit) as refused:
                cli.main([*words, "--port", str(other.getsockname()[1])])
            words += re.search(r"\(Address already in use\); .* such as (--port \d+)$", str(refused.value))[1].split()
        if os.getuid() == 0:
            with pytest.raises(SystemExit, match="--user nosuch: there is no such user"):
                cli.main([*words, "--user", "nosuch"])
            with pytest.raises(SystemExit, match=rf"that user may not enter {folder};") as refused:
                cli.main(words)
            done = paste(str(refused.value).partition("let everyone pass through: ")[2], tmp_path)
            assert done.returncode == 0, done.stderr
        assert not (folder / "my services" / "postgres" / "data").exists()
        command = [sys.executable, "-m", "kiloseg.tracking.services", *words[1:]]
        process = subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            text=True,
            # A shell starts what runs in the background with SIGINT ignored.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        try:
            export, key = re.fullmatch(
                r"MLflow is ready:  (export .*\S)   \(press Ctrl\+(C) to stop\)\n", process.stdout.readline()
            ).groups()
            record = "from kiloseg.tracking.runs import Tracker; print(Tracker.open('mine', None).study_run('one', {}, {}).run_id)"
            done = paste(f'{export}; {sys.executable} -c "{record}"', tmp_path)
            assert done.returncode == 0 and re.fullmatch(r"[0-9a-f]{32}", done.stdout.strip().splitlines()[-1]), (
                done.stderr
            )
            assert not list(tmp_path.iterdir()), "nothing is kept outside of the services"
            process.send_signal({"C": signal.SIGINT}[key])
            assert process.communicate(timeout=300) == ("stopping\n", None)
            assert process.returncode == 0
        finally:
            process.kill()
            process.communicate()
        with socket.create_server(("127.0.0.1", int(words[-1]))):
            pass
    finally:
        shutil.rmtree(folder)
