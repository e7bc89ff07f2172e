"""What SECURITY.md promises: nothing is run that came as data, nothing listens to the network, no secret is kept."""

import ast
import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from heads import free_ports

from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.data.reading.loader import TrainBatches
from kiloseg.models import build_segmenter
from kiloseg.overrides import flatten, override
from kiloseg.tracking.delivery import Delivery
from kiloseg.tracking.runs import Tracker
from kiloseg.tracking.services import TrackingServer
from kiloseg.training.checkpoint import load_checkpoint, load_newest
from kiloseg.tuning.study import Study

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in ("platform", "datasets", "experiments", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
)


def faults(tree):
    """What a source text does that could run data as code and that ruff does not see: it depends on an argument."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        values = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name in ("torch.load", "timm.models.load_state_dict") and values.get("weights_only") != "True":
            yield f"{name} without weights_only=True"
        if values.get("allow_pickle", "False") != "False":
            yield f"{name} with allow_pickle"
        if name in ("compile", "__import__"):
            yield f"{name} runs text"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_data(path):
    assert not set(faults(ast.parse(path.read_text())))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "timm.models.load_state_dict(path)",
        "np.load(path, allow_pickle=True)",
        "compile(text, name, 'exec')",
        "__import__(name)",
    ],
)
def test_the_check_of_sources_sees(source):
    assert list(faults(ast.parse(source)))
    assert not list(faults(ast.parse("torch.load(p, weights_only=True); model.load_state_dict(s); model.eval()")))


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        ("TID251", "import pickle"),
        ("TID251", "from cloudpickle import loads"),
        ("TID251", "import pandas\n\npandas.read_pickle(path)"),
        ("TID251", "import yaml\n\nyaml.unsafe_load(text)"),
        ("S506", "import yaml\n\nyaml.load(text, Loader)"),
        ("S307", "eval(text)"),
        ("S102", "exec(text)"),
        ("S605", "import os\n\nos.system(text)"),
        ("S602", "import subprocess\n\nsubprocess.run(text, shell=True)"),
    ],
)
@pytest.mark.parametrize("folder", ["platform/kiloseg/data", "datasets", "experiments", "benchmarks"])
def test_make_lint_sees(rule, source, folder):
    """By the settings of this repository, for a file of each folder."""
    check = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "--stdin-filename"]
    done = subprocess.run([*check, f"{folder}/new.py", "-"], cwd=ROOT, input=source, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f" {rule} " in done.stdout


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def test_the_attack_works_where_it_is_let(tmp_path):
    pickle.loads(pickle.dumps(Attack(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_a_checkpoint_cannot_run_code(tmp_path):
    path = tmp_path / "step-00000001.pt"
    torch.save({"format": "kiloseg-checkpoint-1", "step": 1, "model": Attack(tmp_path / "mark")}, path)
    with pytest.raises(ValueError, match=r"step-00000001\.pt is damaged"):
        load_checkpoint(path)
    with pytest.warns(UserWarning, match="is damaged"):
        assert load_newest(tmp_path) is None
    assert not (tmp_path / "mark").exists()


def test_a_file_of_weights_cannot_run_code(quick, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": Attack(tmp_path / "mark")}, path)
    config = override(quick, {"model.weights": str(path)})
    with pytest.raises(ValueError, match="could not be loaded for 'test_resnet'"):
        build_segmenter(config, 6, torch.device("cpu"))
    assert not (tmp_path / "mark").exists()


def test_a_shard_cannot_run_code(squares, quick, tmp_path):
    """Members with the suffixes that webdataset would unpickle are bytes that nobody looks at."""
    folder = tmp_path / "squares"
    folder.mkdir()
    for path in squares.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    poison = pickle.dumps(Attack(tmp_path / "mark"))
    info = read_info(folder)
    sizes = {}
    for shard in info.shards("train"):
        with tarfile.open(folder / shard.name) as tar:
            files = [(member.name, tar.extractfile(member).read()) for member in tar]
        keys = dict.fromkeys(name.partition(".")[0] for name, _ in files)
        with tarfile.open(folder / shard.name, "w") as tar:
            for key in keys:
                own = [(name, content) for name, content in files if name.partition(".")[0] == key]
                for name, content in [
                    *own,
                    *((f"{key}.{suffix}", poison) for suffix in ("pkl", "pickle", "pyd", "pth")),
                ]:
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        sizes[shard.name] = (shard.bytes, (folder / shard.name).stat().st_size)
    text = (folder / "dataset.json").read_text()
    for before, after in sizes.values():
        text = text.replace(f'"bytes": {before}', f'"bytes": {after}')
    (folder / "dataset.json").write_text(text)
    batches = TrainBatches(override(quick, {"data.path": str(folder)}).data, read_info(folder), batch_size=8, seed=0)
    assert len(list(batches.epoch(0))) == 5
    assert not (tmp_path / "mark").exists()


LISTENING = """
import os, re, sys
from pathlib import Path
import ray
from kiloseg.tuning.cluster import start_ray
start_ray()
@ray.remote(num_cpus=0)
class Actor:
    def ready(self): return True
actors = [Actor.remote() for _ in range(2)]
ray.get([actor.ready.remote() for actor in actors])
parents = {}
for folder in Path("/proc").glob("[0-9]*"):
    try: parents[folder.name] = (folder / "stat").read_text().rpartition(")")[2].split()[1]
    except OSError: pass
def ours(pid):
    while pid in parents and pid != str(os.getpid()): pid = parents[pid]
    return pid == str(os.getpid())
sockets = set()
for pid in filter(ours, parents):
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try: target = os.readlink(link)
        except OSError: continue
        if match := re.fullmatch(r"socket:\\[(\\d+)\\]", target): sockets.add(match[1])
for table in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and words[9] in sockets: print("listens", words[1].partition(":")[0])
ray.shutdown()
"""

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's table of sockets")
def test_a_study_on_this_machine_listens_on_loopback_alone():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING],
        env=environment | {"PYTHONPATH": str(ROOT / "platform"), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    addresses = re.findall(r"^listens (\w+)$", done.stdout, re.MULTILINE)
    assert len(addresses) > 4, "the head's own servers at least"
    assert set(addresses) <= LOOPBACK


SECRETS = ("hunter2-tracking", "hunter2-storage", "AKIAHUNTER2")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An MLflow server with a password in its address, as a proxy in front of it would want."""
    (port,) = free_ports(1)
    folder = tmp_path / "server"
    server = TrackingServer(folder, f"sqlite:///{folder}/mlflow.db", port, workers=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRETS[0]}@127.0.0.1:{port}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[1])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS[2])
    yield folder, server
    server.kill()


def holding_a_secret(*folders):
    """Files that hold one, whatever they are."""
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in SECRETS)
    ]


@pytest.mark.timeout(200)
def test_no_secret_reaches_mlflow_or_the_screen(server, squares, tmp_path, capfd, caplog):
    """Nor the disk: numbers go by way of the file of messages, as those of every study do; at the end the server is gone."""
    folder, mlflow = server
    base = override(Config(), {"data.path": str(squares)})
    runs = tmp_path / "runs"
    runs.mkdir()
    tracker = Tracker.open("secrets", runs)
    study = tracker.study_run("study", flatten(base), {"source": "tests"})
    study.log_dataset("squares", "0" * 64, str(squares))
    delivery = Delivery(runs, study)
    trial = delivery.trial("trial")
    trial.begin(flatten(base))
    trial.log_metrics({"val/miou": 0.5}, step=1)
    trial.log_table({"iou": [0.5]}, "iou.json")
    (tmp_path / "file.txt").write_text("a file")
    delivery.study.log_file(tmp_path / "file.txt", "best")
    assert delivery.flush(60)
    study.end("FINISHED")
    print(tracker.ui_command())
    assert tracker.client.get_run(study.run_id).data.params["data.path"] == str(squares)
    assert any((folder / "artifacts").rglob("file.txt"))

    mlflow.stop()
    trial.log_metrics({"val/miou": 0.6}, step=2)
    assert not delivery.flush(3)
    delivery.close(1)
    assert holding_a_secret(folder, runs) == []
    output = "".join(capfd.readouterr()) + caplog.text
    assert "127.0.0.1" in output
    assert not any(secret in output for secret in SECRETS)


def test_settings_hold_no_credentials():
    with pytest.raises(ValueError, match="URL without user and password") as refused:
        Study(name="x", runs=f"s3://{SECRETS[2]}:{SECRETS[1]}@bucket/runs")
    assert not any(secret in str(refused.value) for secret in SECRETS)
    assert Study(name="x", runs="s3://bucket/runs/a@b").runs


def test_the_page_names_what_is_tested():
    text = (ROOT / "SECURITY.md").read_text()
    for word in ("weights only", "loopback", "RAY_AUTH_MODE=token", "MLFLOW_TRACKING_URI", "pip-audit"):
        assert word in text
    assert "pip-audit" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
