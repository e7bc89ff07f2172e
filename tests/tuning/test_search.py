"""A real study on real Ray, read back from MLflow; what a user sees; and trials that cannot work."""

import pandas
import pytest
import ray
from mlflow import MlflowClient

from kiloseg.overrides import flatten, override
from kiloseg.training.evaluation import load_segmenter
from kiloseg.tuning.cluster import ray_connection
from kiloseg.tuning.search import Search, search
from kiloseg.tuning.space import Space, choice, log, negatives
from kiloseg.tuning.summary import best_row, checkpoint_file, write_summary


@pytest.fixture(scope="module")
def one_ray():
    """Studies share a Ray that is there before them, and leave it as it is."""
    with ray_connection():
        yield
        assert ray.is_initialized()


@pytest.fixture
def study_of(tmp_path, quick, one_ray):
    base = override(quick, {"trainer.steps": 6, "trainer.validate_every": 3})

    def started(study, dimensions, first):
        return search(study, Space(base, dimensions), first=first, script="tests/test_search.py")

    started.base = base
    return started


def entered(study):
    with study:
        raise AssertionError("the study was not refused")


SPACE = (
    choice("model.embed_dim", [4, 8]),
    *negatives(("all", "random"), 6),
    log("optimizer.lr", 1e-3, 1e-2),
)
FIRST = {"model.embed_dim": 8, "loss.negatives.kind": "random", "loss.negatives.count": 2, "optimizer.lr": 5e-3}


@pytest.mark.timeout(400)
def test_two_trials_are_in_mlflow(study_of, tmp_path, squares):
    study = Search(name="two", num_trials=2, early_stopping=False, runs=str(tmp_path / "runs"))
    with study_of(study, dimensions=SPACE, first=[FIRST]) as result:
        write_summary(result.rows, result.folder, result.run)

    assert [row.outcome for row in result.rows] == ["finished", "finished"]
    assert FIRST in [row.overrides for row in result.rows]

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("two")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(next(name for name, run in runs.items() if "kiloseg.study" in run.data.tags))
    assert len(runs) == 2
    rows = {row.trial: row for row in result.rows}
    for run in runs.values():
        row = rows[run.data.tags["kiloseg.trial"]]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        expected = flatten(study_of.base) | row.overrides
        assert {name: run.data.params[name] for name in expected} == {
            name: str(value) for name, value in expected.items()
        }
        history = client.get_metric_history(run.info.run_id, "val/miou")
        assert [point.step for point in history] == [3, 6]
        assert max(point.value for point in history) == pytest.approx(row.miou)
        assert [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")] == [2, 3, 4, 6]
        for name in ("val/pixel_accuracy", "train/images_per_s", "peak_memory_gib", "val/peak_memory_gib"):
            assert run.data.metrics[name] > 0, name
        assert run.data.metrics["oom"] == 0
        assert run.data.tags["peak_memory_kind"] == "cpu_live_tensors"
        assert "iou_per_class.json" in {file.path for file in client.list_artifacts(run.info.run_id)}

    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts >= {
        "trials.csv",
        "trials.json",
        "miou_vs_embed_dim.png",
        "peak_memory_vs_embed_dim.png",
        "best_predictions.png",
        "best",
    }
    best = best_row(result.rows)
    assert parent.data.metrics["best/miou"] == pytest.approx(best.miou)
    assert parent.data.tags["best.trial"] == best.trial
    dataset = parent.inputs.dataset_inputs[0].dataset
    assert dataset.name == "squares"
    assert len(dataset.digest) == 32
    table = pandas.read_csv(result.folder / "trials.csv")
    assert list(table["trial"]) == [row.trial for row in sorted(result.rows, key=lambda row: -row.miou)]
    _, config = load_segmenter(checkpoint_file(best))
    assert config.model.embed_dim == best.overrides["model.embed_dim"]


@pytest.mark.timeout(400)
def test_trials_that_cannot_work_are_rows_and_the_study_goes_on(study_of, tmp_path):
    """One diverges, one asks for more classes than there are, one for terabytes, one is fine."""
    study = Search(
        name="failing", num_trials=4, early_stopping=False, budget="1000000000GiB", runs=str(tmp_path / "runs")
    )
    fine = {
        "optimizer.name": "adamw",
        "optimizer.lr": 5e-3,
        "loss.negatives.kind": "all",
        "loss.negatives.count": 2,
        "data.num_classes": 6,
        "model.embed_dim": 4,
    }
    first = [
        fine | {"optimizer.name": "sgd", "optimizer.lr": 1e30},
        fine | {"data.num_classes": 7},
        fine | {"model.embed_dim": 10**10},
        fine,
    ]
    dimensions = (
        choice("optimizer.name", ["sgd", "adamw"]),
        log("optimizer.lr", 1e-3, 1e31),
        choice("loss.negatives.kind", ["all", "random"]),
        choice("loss.negatives.count", [2, 5]),
        choice("data.num_classes", [6, 7]),
        choice("model.embed_dim", [4, 10**10]),
    )
    with study_of(study, dimensions=dimensions, first=first) as result:
        pass
    diverged, refused, oom, finished = (
        next(row for row in result.rows if row.overrides == overrides) for overrides in first
    )
    assert finished.outcome == "finished"
    assert diverged.outcome == "diverged"
    assert "lower optimizer.lr" in diverged.error
    assert refused.outcome == "refused"
    assert "data.num_classes = 7, but data set squares has only 6 classes" in refused.error
    assert oom.outcome == "oom"
    assert oom.miou is None
    assert best_row(result.rows).overrides == fine
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("failing")
    statuses = {run.data.tags.get("outcome"): run for run in client.search_runs([experiment.experiment_id])}
    assert statuses["diverged"].info.status == "FAILED"
    assert statuses["refused"].info.status == "FAILED"
    assert "val/miou" not in statuses["refused"].data.metrics
    assert statuses["oom"].data.metrics["oom"] == 1
    assert statuses["finished"].data.metrics["oom"] == 0


@pytest.mark.timeout(400)
def test_trial_of_two_workers_that_cannot_work_is_not_tried_again(study_of, tmp_path):
    """It fails in one of the workers while the other waits for it, or in both; its run says so as if it were one."""
    study = Search(name="pair", num_trials=1, workers=2, cpus_per_worker=0.5, runs=str(tmp_path / "runs"))
    odd = {"trainer.batch_size": 7}
    with study_of(study, (choice("trainer.batch_size", [7]),), first=[odd]) as result:
        pass
    (row,) = result.rows
    assert (row.outcome, row.overrides) == ("refused", odd)
    assert "trainer.batch_size = 7 cannot be split over 2 workers" in row.error
    (path,) = (tmp_path / "runs" / "ray").glob("*/train/*/verdict")
    assert list(path.iterdir())


def test_settings_that_cannot_work_are_refused_before_ray_starts(study_of, tmp_path):
    study = Search(name="wrong", num_trials=1, runs=str(tmp_path / "runs"))
    with pytest.raises(ValueError, match=r"no setting is called model\.dim; the settings are: data\.path"):
        entered(study_of(study, (choice("model.dim", [1]),), first=[]))
    with pytest.raises(ValueError, match=r"no study named 'wrong' to resume"):
        entered(study_of(Search(name="wrong", runs=str(tmp_path / "runs"), resume=True), dimensions=SPACE, first=[]))
    with pytest.raises(ValueError, match="num_trials = 0: expected at least 1"):
        Search(name="wrong", num_trials=0)
    with pytest.raises(ValueError, match="without slashes"):
        Search(name="a/b")


def test_unreachable_mlflow_is_named(study_of, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"MLflow at http://127.0.0.1:9 does not answer") as refused:
        entered(study_of(Search(name="away", runs=str(tmp_path / "runs")), dimensions=SPACE, first=[]))
    assert "secret" not in str(refused.value)
