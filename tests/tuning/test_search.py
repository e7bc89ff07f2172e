"""A real study on real Ray, read back from MLflow; what a user sees; and trials that cannot work."""

import pandas
import pytest
import ray
from mlflow import MlflowClient

from kiloseg.overrides import flatten, override
from kiloseg.training.evaluation import load_segmenter
from kiloseg.tuning.cluster import ray_connection
from kiloseg.tuning.ranking import best_row
from kiloseg.tuning.search import INFEASIBLE, Search, search
from kiloseg.tuning.searcher import PLANNED, infeasible_trials
from kiloseg.tuning.space import Space, choice, log, negatives
from kiloseg.tuning.summary import checkpoint_file, write_summary


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
    choice("model.embed_dim", [4, 8, 4096]),
    *negatives(("all", "random"), 6),
    log("optimizer.lr", 1e-3, 1e-2),
)
TOO_LARGE = {
    "model.embed_dim": 4096,
    "loss.negatives.kind": "random",
    "loss.negatives.count": 2,
    "optimizer.lr": 5e-3,
}
BUDGET = "0.13GiB"
FIRST = {"model.embed_dim": 8, "loss.negatives.kind": "random", "loss.negatives.count": 2, "optimizer.lr": 5e-3}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_trials_are_in_mlflow(study_of, tmp_path, squares):
    study = Search(name="two", num_trials=2, early_stopping=False, budget=BUDGET, runs=str(tmp_path / "runs"))
    with study_of(study, dimensions=SPACE, first=[TOO_LARGE, FIRST]) as result:
        write_summary(result.rows, result.folder, result.run, sampled=result.sampled)

    assert [row.outcome for row in result.rows] == ["finished", "finished"]
    assert FIRST in [row.overrides for row in result.rows]
    passed_over = infeasible_trials(result.sampled)
    assert passed_over[0].params == TOO_LARGE
    assert {trial.params["model.embed_dim"] for trial in passed_over} == {4096}
    assert not {"trial"} & {name for trial in passed_over for name in trial.user_attrs}, "none was launched"
    for row in result.rows:
        planned = next(trial for trial in result.sampled.trials if trial.user_attrs.get("trial") == row.trial)
        assert row.peak_memory_gib <= planned.user_attrs[PLANNED] * 1.001 <= float(BUDGET.removesuffix("GiB"))

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("two")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop(next(name for name, run in runs.items() if "kiloseg.study" in run.data.tags))
    assert len(runs) == 2
    assert parent.data.metrics[INFEASIBLE] == len(passed_over)
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
        "pareto_memory.png",
        "pareto_time.png",
        "search.html",
        "optuna.journal",
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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ended_study_gets_more_trials_and_its_best_is_trained_again(study_of, tmp_path):
    """A third trial, then the best with two other seeds; a resumption of what has ended runs nothing."""
    runs = str(tmp_path / "runs")
    dimensions = (choice("model.embed_dim", [4, 8]), log("optimizer.lr", 1e-3, 1e-2))
    with study_of(Search(name="more", num_trials=2, runs=runs), dimensions, first=[]) as began:
        pass
    more = Search(name="more", num_trials=3, runs=runs, resume=True, confirm=1, confirm_seeds=2)
    with study_of(more, dimensions, first=[]) as result:
        write_summary(result.rows, result.folder, result.run, sampled=result.sampled, confirmed=result.confirmed)
    assert {row.trial for row in began.rows} < {row.trial for row in result.rows}
    assert len({row.trial for row in result.rows}) == 3
    ended = {trial.user_attrs["trial"] for trial in result.sampled.trials if trial.state.is_finished()}
    assert ended == {row.trial for row in result.rows}, "the sampler knows those of before"
    (confirmed,) = result.confirmed
    complete = [row for row in result.rows if row.outcome == "finished"]
    assert confirmed.trial.trial == best_row(complete).trial
    assert {row.overrides["trainer.seed"] for row in confirmed.repeats} == {1, 2}
    for row in confirmed.repeats:
        assert confirmed.trial.overrides.items() <= row.overrides.items()
    with study_of(more, dimensions, first=[]) as again:
        pass
    assert {row.trial for row in again.rows} == {row.trial for row in result.rows}
    assert {row.trial for row in again.confirmed[0].repeats} == {row.trial for row in confirmed.repeats}

    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("more")
    tracked = {run.data.tags.get("kiloseg.trial"): run for run in client.search_runs([experiment.experiment_id])}
    expected = {row.trial for row in [*result.rows, *confirmed.repeats]}
    assert set(tracked) == {None, *expected}, "one run for the study, and one for each trial"
    assert tracked[None].data.metrics["best/miou_mean"] == pytest.approx(confirmed.mean)
    assert tracked[confirmed.repeats[0].trial].data.tags["repeats"] == confirmed.trial.trial
    artifacts = {file.path for file in client.list_artifacts(tracked[None].info.run_id)}
    assert {"confirmed.csv", "confirmed.png"} <= artifacts


@pytest.mark.slow
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


@pytest.mark.slow
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
