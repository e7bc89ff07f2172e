"""Finished trials of a search go on to more steps: what goes on, from where, and a real study on real Ray."""

import dataclasses
import json
from pathlib import Path

import pandas
import pytest
from mlflow import MlflowClient
from trial_rows import row

from kiloseg.overrides import override
from kiloseg.storage.filesystems import LocalFolder
from kiloseg.training.loop import train
from kiloseg.tuning.cluster import ray_connection
from kiloseg.tuning.continuation import RECORD, Part, begun_steps, merged, to_continue
from kiloseg.tuning.reports import run_of
from kiloseg.tuning.search import Search, search
from kiloseg.tuning.space import Space, choice, log
from kiloseg.tuning.summary import TABLE, checkpoint_file, table, write_summary
from kiloseg.tuning.trial import _earlier_state


def trial(name, miou, dim, *, step=10, **more):
    return dataclasses.replace(
        row(name, miou, 1.0, outcome=more.pop("outcome", "finished")),
        overrides={"model.embed_dim": dim},
        step=step,
        **more,
    )


def test_finished_trials_go_on_the_best_first_and_equal_ones_once(quick):
    rows = [
        trial("low", 0.1, 4),
        trial("high", 0.9, 8),
        trial("equal", 0.8, 8),
        trial("stopped", 0.7, 16, outcome="stopped", step=5),
        trial("oom", None, 32, outcome="oom"),
        trial("longer", 0.5, 64, step=20),
    ]
    longer = override(quick, {"trainer.steps": 20})
    assert [each.trial for each in to_continue(rows, longer)] == ["high", "low"]
    assert [each.trial for each in to_continue(rows, longer, best=2)] == ["high"], "the second best has gone on already"
    assert [each.trial for each in to_continue(rows, override(quick, {"trainer.steps": 40}), best=2)] == [
        "high",
        "longer",
    ]


def test_longer_trials_take_the_places_of_the_shorter_ones():
    rows = [
        trial("a", 0.5, 4, checkpoint="a/best"),
        trial("b", 0.6, 8, checkpoint="b/best"),
        trial("c", 0.4, 16),
        trial("d", 0.3, 32),
    ]
    part = Part(
        name="p", steps=20, points={name: {"model.embed_dim": dim} for name, dim in zip("abc", (4, 8, 16), strict=True)}
    )
    longer = [
        trial("a2", 0.7, 4, step=20, checkpoint="a2/best"),
        trial("b2", 0.6, 8, step=20),
        trial("c2", None, 16, step=12, outcome="diverged"),
    ]
    found = merged(rows, longer, part)
    assert [each.trial for each in found] == ["a2", "b2", "c", "c2", "d"], "no result is lost to a failure"
    assert [each.continues for each in found] == ["a", "b", "", "c", ""]
    assert [each.checkpoint for each in found[:2]] == ["a2/best", "b/best"], "b was best before it went on"
    assert found[0].seconds == 2.0
    assert list(table(found)["continues"]) == ["a", "b", "", "", "c"]
    assert "continues" not in table(rows)


def test_no_trial_is_made_shorter(tmp_path):
    place = LocalFolder(tmp_path)
    assert begun_steps({"trainer.steps": 10}, place, 20) == 10
    assert begun_steps({}, place, 20) == 20
    with pytest.raises(
        ValueError, match=r"--trainer.steps 5: trials of this study have 10 steps, .* give --trainer.steps 10"
    ):
        begun_steps({"trainer.steps": 10}, place, 5)
    (tmp_path / RECORD).write_text(json.dumps([{"name": "p", "steps": 20, "points": {}}]))
    with pytest.raises(ValueError, match=r"trials of this study have 20 steps"):
        begun_steps({"trainer.steps": 10}, place, 10)
    assert begun_steps({"trainer.steps": 10}, place, 20) == 10


def test_steps_after_the_old_end_have_the_rate_of_the_longer_run(quick, tmp_path):
    """It had fallen nearly to 0; weights and the optimizer's state go on, and each step sees the samples of a longer run."""
    short = override(quick, {"trainer.steps": 4, "trainer.report_every": 1, "trainer.validate_every": 2})
    train(short, lambda report: None)
    # As Ray Train keeps them: a folder for each checkpoint.
    checkpoint = tmp_path / "trial" / "checkpoint_1"
    checkpoint.parent.mkdir()
    Path(short.trainer.output).rename(checkpoint)
    state = _earlier_state(str(checkpoint.parent), 8)
    longer = override(short, {"trainer.steps": 8, "trainer.output": str(tmp_path / "longer")})
    reports = []
    train(longer, reports.append, resume=state)
    assert [report.step for report in reports] == [5, 6, 7, 8]
    # (1 - step / 8) ** 0.9, worked out by hand; the last step of the shorter run was at 0.25 ** 0.9 = 0.28717.
    factors = [0.53589, 0.41365, 0.28717, 0.15389]
    assert [report["train/lr"] / longer.optimizer.lr for report in reports] == pytest.approx(factors, abs=1e-5)
    with pytest.raises(ValueError, match=r"there is no intact checkpoint in .*nowhere to go on from"):
        _earlier_state(str(tmp_path / "nowhere"), 8)


def test_limit_is_for_resumptions_alone(quick, tmp_path):
    with pytest.raises(ValueError, match="continue_best = -1: expected 0 or more"):
        Search(name="s", continue_best=-1)
    study = Search(name="s", continue_best=2, runs=str(tmp_path / "runs"))
    with (
        pytest.raises(ValueError, match="--continue-best 2: expected only with --resume"),
        search(study, Space(quick, (choice("model.embed_dim", [4]),)), first=[], script="tests"),
    ):
        pytest.fail("it began")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_finished_study_goes_on_to_more_steps(quick, tmp_path):
    """Twice: first the best alone, then all; a repetition does nothing, and fewer steps are refused."""
    runs = str(tmp_path / "runs")
    base = override(quick, {"trainer.steps": 4, "trainer.validate_every": 2, "trainer.report_every": 2})
    dimensions = (choice("model.embed_dim", [4, 8]), log("optimizer.lr", 1e-3, 1e-2))
    study = Search(name="longer", num_trials=2, early_stopping=False, runs=runs)

    def ran(study, steps):
        space = Space(override(base, {"trainer.steps": steps}), dimensions)
        with search(study, space, first=[], script="tests") as result:
            write_summary(result.rows, result.folder, result.run, sampled=result.sampled)
        return {each.trial: each for each in result.rows}

    with ray_connection():
        begun = ran(study, 4)
        best, other = sorted(begun.values(), key=lambda each: -each.miou)
        resumed = dataclasses.replace(study, resume=True)
        first = ran(dataclasses.replace(resumed, continue_best=1), 8)
        (longer,) = (each for each in first.values() if each.continues)
        assert (longer.continues, longer.step, longer.outcome, longer.overrides) == (
            best.trial,
            8,
            "finished",
            best.overrides,
        )
        assert set(first) == {longer.trial, other.trial}
        assert longer.miou >= best.miou and checkpoint_file(longer).is_file()
        assert checkpoint_file(best).is_file(), "nothing of the shorter trial is lost"
        assert ran(dataclasses.replace(resumed, continue_best=1), 8).keys() == first.keys()
        with pytest.raises(ValueError, match="trials of this study have 8 steps, and no trial can be made shorter"):
            ran(resumed, 4)
        last = ran(resumed, 8)
    assert sorted(each.continues for each in last.values()) == sorted(begun)
    assert longer.trial in last

    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    tracked = client.search_runs([client.get_experiment_by_name("longer").experiment_id])
    by_trial = {run.data.tags.get("kiloseg.trial"): run for run in tracked}
    assert set(by_trial) == {None, *begun, *last}
    run = by_trial[longer.trial]
    assert run.data.tags["continues"] == best.trial and run.data.params["trainer.steps"] == "8"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/miou")] == [2, 4, 6, 8]
    before = client.get_metric_history(by_trial[best.trial].info.run_id, "val/miou")
    assert [point.step for point in before] == [2, 4]
    assert by_trial[None].data.metrics["best/miou"] == pytest.approx(max(each.miou for each in last.values()))
    (folder,) = (tmp_path / "runs" / "studies").iterdir()
    written = pandas.read_csv(folder / TABLE, dtype={"trial": str, "continues": str})
    assert dict(zip(written["trial"], written["continues"], strict=True)) == {
        each.trial: each.continues for each in last.values()
    }
    assert run_of(longer.trial) in longer.folder
