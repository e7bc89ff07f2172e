"""Studies as a user starts them, on Ray nodes that are processes of their own, and what became of them."""

import contextlib
import dataclasses
import functools
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
from heads import free_ports
from mlflow import MlflowClient
from ray.cluster_utils import Cluster
from scripts import words_of

from kiloseg.storage.filesystems import inside, open_folder
from kiloseg.tracking.services import TrackingServer

ROOT = Path(__file__).parents[1]

STEPS, VALIDATE_EVERY = 40, 10

TRAIN_WORKER = "ray::RayTrainWorker"
TRIAL_ACTOR = "ray::ImplicitFunc"

SMALL = {"object_store_memory": 80 * 2**20}
"""Of a node."""

DETERMINISTIC = ("train/loss", "train/lr", "epoch", "val/miou", "val/pixel_accuracy", "oom")


class Nodes:
    """A head without CPUs, and nodes that trials run on."""

    def __init__(self):
        # For the nodes as well as for the scripts of studies.
        os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, **SMALL},
        )
        self.nodes = []

    @property
    def address(self):
        return self.cluster.address

    def need(self, count):
        """Starts nodes until there are so many."""
        while len(self.nodes) < count:
            self.nodes.append(self.cluster.add_node(num_cpus=2, memory=2 * 2**30, **SMALL))

    def of(self, pid):
        """The node that a worker process is on."""
        return next(node for node in self.nodes if parent(pid) in raylets(node))

    def kill(self, node):
        """As when a machine loses its power."""
        pids = [pid for raylet in raylets(node) for pid in children(raylet)]
        self.cluster.remove_node(node, allow_graceful=False)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes.remove(node)

    def processes(self, title):
        """Numbers of the worker processes with a title that begins so, on all nodes."""
        found = []
        for node in self.cluster.list_all_nodes():
            for raylet in raylets(node):
                found += [pid for pid in children(raylet) if command_line(pid).startswith(title)]
        return found

    def worker(self, trial):
        """The process that trains a trial, which is at work in a folder of the trial's name."""
        (pid,) = [pid for pid in self.processes(TRAIN_WORKER) if working_folder(pid).endswith(trial)]
        return pid

    def close(self):
        self.cluster.shutdown()


def raylets(node):
    return [entry.process.pid for entry in node.all_processes.get("raylet", [])]


def command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def working_folder(pid):
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except (FileNotFoundError, ProcessLookupError):
        return ""


def parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def children(pid):
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and parent(entry.name) == pid]


def study_command(data, runs, *more):
    """A study of two trials, both always the same, one of which has its own 40 steps."""
    flags = {
        "data.path": data,
        "data.crop": 64,
        "data.loader-workers": 0,
        "data.val-samples": 4,
        "model.arch": "fpn",
        "model.backbone": "test_resnet",
        "model.weights": "none",
        "trainer.steps": STEPS,
        "trainer.batch-size": 4,
        "trainer.validate-every": VALIDATE_EVERY,
        "trainer.report-every": 5,
        "optimizer.warmup-steps": 0,
        "num-trials": 2,
        "runs": runs,
    }
    script = str(ROOT / "experiments" / "tune_embed_dim.py")
    return [sys.executable, script, *words_of(flags), "--no-early-stopping", *map(str, more)]


class RunningStudy:
    """The script of a study, and what it prints."""

    def __init__(self, data, runs, *more, log, address=None, environment=None, cwd=None):
        self.log = log
        variables = os.environ | {"PYTHONPATH": str(ROOT / "platform"), "PYTHONUNBUFFERED": "1"} | (environment or {})
        if address is not None:
            variables["RAY_ADDRESS"] = address
        with log.open("w") as file:
            self.process = subprocess.Popen(
                study_command(data, runs, *more),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=variables,
                cwd=cwd,
                # Tests that run in the background of a shell may ignore Ctrl-C, and what they start with them.
                preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def output(self):
        return self.log.read_text()

    def until(self, text, seconds=600, times=1):
        """Waits for a text to be printed."""
        deadline = time.monotonic() + seconds
        while self.output.count(text) < times:
            assert self.process.poll() is None or self.output.count(text) >= times, (
                f"ended with {self.process.returncode} before {text!r}:\n{self.output}"
            )
            assert time.monotonic() < deadline, f"{text!r} did not come in {seconds} s:\n{self.output}"
            time.sleep(0.05)

    def end(self, seconds=1000):
        """Waits for the end; the exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the study did not end in {seconds} s:\n{self.output}") from None

    def kill(self, number=signal.SIGKILL):
        """To the script and what it started itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        if number == signal.SIGKILL:
            self.process.wait()

    def trial_at(self, text):
        """The trial that first printed a text."""
        line = next(line for line in self.output.splitlines() if text in line)
        return line.partition("trial ")[2].split()[0]

    def steps_gone_on_from(self):
        """Steps of the checkpoints that trials were resumed from."""
        return [int(line.rsplit(" ", 1)[1]) for line in self.output.splitlines() if "continues from step" in line]


class Server:
    """A tracking server that can be killed and started again where it was."""

    def __init__(self, folder, uri):
        self.folder, self.database = folder, uri
        (self.port,) = free_ports(1)
        self.start()

    def start(self):
        self.process = TrackingServer(self.folder, self.database, self.port, workers=1)
        self.uri = self.process.uri

    def kill(self):
        self.process.kill()


@dataclasses.dataclass
class Outcome:
    """A study's table by kind of negatives, and its numbers in MLflow: {kind: {(name, step): [values]}}."""

    table: pandas.DataFrame
    numbers: dict


def outcome(runs, uri=None):
    """Of the one study under `runs`, a path or URL."""
    (name,) = open_folder(inside(str(runs), "studies")).entries()
    content = open_folder(inside(str(runs), f"studies/{name}")).read("trials.csv")
    table = pandas.read_csv(io.BytesIO(content), dtype={"trial": str})
    table = table.set_index("loss.negatives.kind").sort_index()
    return Outcome(table, tracked(uri or f"sqlite:///{runs}/mlflow.db"))


def tracked(uri, name="tune_embed_dim"):
    """All that MLflow has of the trials of an experiment."""
    client = MlflowClient(uri)
    numbers = {}
    for run in runs_of_trials(uri, name):
        found = numbers.setdefault(run.data.params["loss.negatives.kind"], {})
        for metric in run.data.metrics:
            for point in client.get_metric_history(run.info.run_id, metric):
                found.setdefault((metric, point.step), []).append(point.value)
    return numbers


def runs_of_trials(uri, name="tune_embed_dim"):
    """MLflow's runs of the trials of an experiment."""
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    return [run for run in runs if "kiloseg.trial" in run.data.tags]


def assert_same(found, reference):
    """The same trials, finished, with the same numbers, each of them in MLflow once."""
    assert list(found.table.index) == list(reference.table.index)
    assert set(found.table["outcome"]) == {"finished"}
    assert set(found.table["step"]) == {STEPS}
    for column in ("val/miou", "peak_memory_gib", "val/peak_memory_gib"):
        pandas.testing.assert_series_equal(found.table[column], reference.table[column], rtol=1e-5)
    assert_same_numbers(found.numbers, reference.numbers)


def assert_same_numbers(found, reference):
    """The same names at the same steps, once, and those that do not depend on a clock with the same values."""
    assert found.keys() == reference.keys()
    for kind, numbers in reference.items():
        assert found[kind].keys() == numbers.keys(), f"{kind}: {sorted(found[kind].keys() ^ numbers.keys())}"
        for (name, step), (value,) in numbers.items():
            assert len(found[kind][name, step]) == 1, (
                f"{kind}: {name} at step {step} is there {found[kind][name, step]}"
            )
            if name in DETERMINISTIC:
                (other,) = found[kind][name, step]
                assert abs(other - value) <= 1e-5 * max(abs(value), 1), (
                    f"{kind}: {name} at step {step}: {other}, {value}"
                )
