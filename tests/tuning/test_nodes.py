"""Studies on clusters of several Ray nodes, each a set of processes of its own with as many GPUs as it is told to have."""

import itertools
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas
import pytest
from conftest import write_dataset
from copies import copy_tree, note_calls, note_reads, notes, reads
from heads import running_head, running_nodes
from studies import runs_of_trials

from kiloseg.tuning.cluster import PACKAGE

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SHARDS = {"train": [8, 8, 8, 8, 8, 8], "val": [5, 6, 5]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A data set that all nodes see."""
    folder = tmp_path_factory.mktemp("shared")
    write_dataset(folder, SHARDS)
    return folder


@pytest.fixture
def seen(tmp_path):
    folder = tmp_path / "seen"
    folder.mkdir()
    return folder


@pytest.fixture
def tree(tmp_path, seen):
    copy = copy_tree(tmp_path / "tree")
    note_calls(copy, "tuning.trial", "_work", seen)
    note_reads(copy, seen)
    return copy


def run_study(head, tree, shared, runs, **more):
    """The experiment, as a user runs it on a cluster; the table of its trials."""
    values = {
        "data.path": shared,
        "data.crop": 64,
        "data.loader-workers": 0,
        "model.weights": "none",
        "model.backbone": "test_convnext",
        "trainer.batch-size": 8,
        "optimizer.warmup-steps": 0,
        "runs": runs,
    } | {name.replace("__", "."): value for name, value in more.items()}
    words = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run(
        [sys.executable, str(tree / "experiments" / "tune_embed_dim.py"), *words, "--no-early-stopping"],
        env=head.environment | {"RAY_ADDRESS": head.address},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (runs / "studies").iterdir()
    table = pandas.read_csv(folder / "trials.csv")
    assert set(table["outcome"]) == {"finished"}
    return table


def test_a_gpu_has_one_trial_and_all_gpus_are_busy(tree, seen, shared, tmp_path):
    with running_head(cpus=0) as head, running_nodes(head, {"cpus": 1, "gpus": 1}, {"cpus": 2, "gpus": 2}):
        table = run_study(head, tree, shared, tmp_path / "runs", num_trials=7, trainer__steps=6)
    assert len(table) == 7
    work = notes(seen, "_work")
    assert len(work) == 7, "no trial was started twice"
    assert all(len(note["gpus"]) == 1 for note in work)
    by_gpu = {}
    for note in work:
        by_gpu.setdefault((note["node"], *note["gpus"]), []).append((note["begin"], note["end"]))
    assert len(by_gpu) == 3, "every GPU had a trial"
    assert sorted(Counter(node for node, _ in by_gpu).values()) == [1, 2], "on both nodes"
    for spans in by_gpu.values():
        spans.sort()
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans)), "one trial a GPU"
    at_once = max(sum(note["begin"] <= other["begin"] < note["end"] for note in work) for other in work)
    assert at_once == 3, "all three were busy at once"


def most_at_once(spans):
    """The largest number of spans of time that overlap."""
    return max(sum(begin <= other < end for begin, end in spans) for other, _ in spans)


def test_small_trials_share_gpus_and_no_gpu_has_more_than_fit(tree, seen, shared, tmp_path):
    """Nine tenths of 3.4 GiB hold three trials of 1 GiB: six run on two GPUs at once."""
    with running_head(cpus=0) as head, running_nodes(head, {"cpus": 1, "gpus": 1}, {"cpus": 1, "gpus": 1}):
        packed = {"pack": "3.4GiB", "budget": "1GiB", "cpus_per_worker": 0.25}
        table = run_study(head, tree, shared, tmp_path / "runs", num_trials=7, trainer__steps=40, **packed)
    assert len(table) == 7
    work = notes(seen, "_work")
    assert len(work) == 7, "no trial was started twice"
    by_gpu = {}
    for note in work:
        by_gpu.setdefault((note["node"], *note["gpus"]), []).append((note["begin"], note["end"]))
    assert len(by_gpu) == 2, "each trial is on one of the two GPUs"
    together = {gpu: most_at_once(spans) for gpu, spans in by_gpu.items()}
    assert max(together.values()) <= 3, together
    assert sum(together.values()) > 3, f"more trials than one GPU holds ran at once: {together}"


COUNT_ROOM = """
import json, sys
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from kiloseg.tuning.cluster import Resources, concurrency, gpu_share, start_ray

start_ray()
found = {}
for share in [0.1, 0.4, gpu_share(3), gpu_share(6), gpu_share(7), 1.0, 2.0]:
    promised = concurrency(Resources(cpus_per_worker=0.1, gpus_per_worker=share))
    groups = [placement_group([{"CPU": 0.1, "GPU": share}]) for _ in range(promised)]
    placed = sum(group.wait(60) for group in groups)
    one_more = placement_group([{"CPU": 0.1, "GPU": share}])
    found[share] = [promised, placed, one_more.wait(3)]
    for group in [*groups, one_more]:
        remove_placement_group(group)
print("found", json.dumps(list(found.values())))
"""


def test_room_for_trials_is_what_ray_has_room_for(tmp_path):
    """Ray itself is asked to place as many shares of GPUs as were counted, and one more."""
    with running_head(cpus=0) as head, running_nodes(head, {"cpus": 4, "gpus": 1}, {"cpus": 4, "gpus": 2}):
        done = subprocess.run(
            [sys.executable, "-c", COUNT_ROOM],
            env=head.environment | {"RAY_ADDRESS": head.address, "PYTHONPATH": str(PACKAGE.parent)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.rpartition("found ")[2])
    assert found == [[count, count, False] for count in (30, 6, 9, 18, 21, 3, 1)]


def test_workers_of_a_trial_read_each_sample_once_and_agree_with_one_worker(tree, seen, shared, tmp_path):
    """2 and 4 workers on three nodes, gloo between them. A learning rate of next to nothing keeps the weights, which a network
    without batch statistics validates alike however its samples are shared out."""
    nodes = ({"cpus": 1, "gpus": 0}, {"cpus": 1, "gpus": 0}, {"cpus": 2, "gpus": 0})
    reported, where = {}, {}
    with running_head(cpus=0) as head, running_nodes(head, *nodes):
        for workers in (1, 2, 4):
            for path in seen.iterdir():
                path.unlink()
            runs = tmp_path / f"runs-{workers}"
            run_study(
                *(head, tree, shared, runs),
                num_trials=1,
                max_concurrent=1,
                workers=workers,
                trainer__steps=6,
                optimizer__lr=1e-12,
            )
            work = notes(seen, "_work")
            assert len(work) == workers
            where[workers] = {note["node"] for note in work}
            for split, count in (("train", 48), ("val", 16)):
                by_process = reads(seen, split)
                assert len(by_process) == workers, "every worker reads"
                assert sorted(len(each) for each in by_process.values()) == [count // workers] * workers
                every = [sample for each in by_process.values() for sample in each]
                assert len(every) == len(set(every)) == count, "an epoch: every sample once over all workers"
            reported[workers] = final_metrics(runs)
    assert len(where[4]) == 3, "on all nodes"
    for workers in (2, 4):
        assert reported[workers]["iou"] == pytest.approx(reported[1]["iou"], rel=1e-9)
        for name in ("val/miou", "val/pixel_accuracy"):
            assert reported[workers][name] == pytest.approx(reported[1][name], rel=1e-9)
    assert reported[1]["val/pixel_accuracy"] > 0


def final_metrics(runs):
    (trial,) = runs_of_trials(f"sqlite:///{runs}/mlflow.db")
    assert trial.data.tags["outcome"] == "finished"
    (result,) = runs.glob("ray/*/*/result.json")
    last = json.loads(result.read_text().splitlines()[-1])
    assert last["val/miou"] == pytest.approx(trial.data.metrics["val/miou"])
    iou = [value for value in last["val/iou_per_class"] if value is not None and not np.isnan(value)]
    return {name: last[name] for name in ("val/miou", "val/pixel_accuracy")} | {"iou": iou}
