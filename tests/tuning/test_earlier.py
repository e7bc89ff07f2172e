"""Searches that go on: further trials of a study, and a start from an earlier one, with real Optuna and without a cluster."""

import json
from types import SimpleNamespace

import optuna
import pytest
from ray import tune
from ray.tune.callback import CallbackList
from ray.tune.schedulers import ASHAScheduler

from kiloseg.overrides import flatten, override
from kiloseg.storage.filesystems import LocalFolder
from kiloseg.tuning.earlier import BEST, inside_space, start_from
from kiloseg.tuning.identity import check_same_study, write_plan
from kiloseg.tuning.journal import JOURNAL, write_journal
from kiloseg.tuning.objectives import OBJECTIVES
from kiloseg.tuning.ray_workarounds.asha_rungs import Rungs, saved_rungs
from kiloseg.tuning.searcher import BudgetedSearcher
from kiloseg.tuning.space import Space, choice, log, negatives

DIGEST = "d" * 32
MIOU = OBJECTIVES["none"]


def space_of(base, changes=None, *, high=64, classes=40):
    kinds = negatives(("all", "random"), classes)
    rate = log("optimizer.lr", 1e-4, 1e-1)
    return Space(override(base, changes or {}), (log("model.embed_dim", 4, high), *kinds, rate))


def results(space, number, seed=0):
    """The trials of a search that likes large dimensions."""
    searcher = BudgetedSearcher(space, [], optuna.samplers.RandomSampler(seed=seed))
    for trial in map(str, range(number)):
        settings = searcher.suggest(trial)
        score = settings["model.embed_dim"] / 1000
        searcher.on_trial_complete(trial, {"val/miou": score, "training_iteration": 1})
    searcher.suggest("one that runs")
    return searcher.study


@pytest.fixture
def earlier(quick, tmp_path):
    """Writes an ended study of 20 trials as a search does; returns its trials."""

    def of(name="mine-20261101-000000-0000", **plan):
        space = space_of(quick)
        folder = tmp_path / "studies" / name
        folder.mkdir(parents=True)
        study = results(space, 20)
        write_plan(flatten(space.base) | {"data digest": DIGEST} | plan, LocalFolder(folder))
        write_journal(study, folder / JOURNAL, name)
        return study

    return of


def test_results_with_the_same_data_and_settings_are_known(earlier, quick, tmp_path):
    then = earlier()
    space = space_of(quick, high=32)
    start = start_from("mine", str(tmp_path), space, DIGEST, MIOU)
    fitting = [trial for trial in then.trials[:20] if trial.params["model.embed_dim"] <= 32]
    assert 5 < len(fitting) < 20
    assert [(trial.params, trial.value) for trial in start.known] == [(trial.params, trial.value) for trial in fitting]
    assert not start.first
    assert str(start) == f"starts from mine-20261101-000000-0000: {len(fitting)} results are known"
    # The sampler takes them for its own: it has no random trials of its own to make first.
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=5)
    searcher = BudgetedSearcher(space, [], sampler, known=start.known)
    chosen = [searcher.suggest(str(number))["model.embed_dim"] for number in range(10)]
    assert sum(dim >= 12 for dim in chosen) >= 8, chosen


@pytest.mark.parametrize(
    ("digest", "changes", "reason"),
    [
        ("e" * 32, {}, "data digest was"),
        (DIGEST, {"data.num_classes": 5}, "data.num_classes was"),
        (DIGEST, {"trainer.steps": 80}, "trainer.steps was"),
    ],
)
def test_of_other_data_the_best_settings_are_tried_first(earlier, quick, tmp_path, digest, changes, reason):
    then = earlier()
    space = space_of(quick, changes, classes=6)
    start = start_from("mine-20261101-000000-0000", str(tmp_path), space, digest, MIOU)
    assert not start.known and reason in start.reason and reason in str(start)
    best = sorted(then.trials[:20], key=lambda trial: -trial.value)[:BEST]
    assert [first["model.embed_dim"] for first in start.first] == [trial.params["model.embed_dim"] for trial in best]
    searcher = BudgetedSearcher(space, start.first, optuna.samplers.RandomSampler(seed=3))
    for number, first in enumerate(start.first):
        settings = searcher.suggest(str(number))
        assert first.items() <= settings.items()
        assert settings.get("loss.negatives.count", 1) <= 5, "what does not fit is chosen anew"


def test_results_of_other_objectives_are_not_compared(earlier, quick, tmp_path):
    earlier()
    start = start_from("mine", str(tmp_path), space_of(quick), DIGEST, OBJECTIVES["memory"])
    assert start.reason == "it had other objectives: val/miou" and start.first


def test_what_is_not_there_is_said(earlier, quick, tmp_path):
    earlier()
    with pytest.raises(ValueError, match=r"--start-from yours: no ended study of this name or id in .*/studies"):
        start_from("yours", str(tmp_path), space_of(quick), DIGEST, MIOU)


def test_values_outside_of_a_space_are_left_out(quick):
    space = Space(quick, (choice("model.embed_dim", [4, 8]), *negatives(("all", "random"), 10)))
    params = {"model.embed_dim": 16, "loss.negatives.kind": "all", "loss.negatives.count": 3, "optimizer.lr": 1.0}
    assert inside_space(params, space) == {"loss.negatives.kind": "all"}
    params |= {"model.embed_dim": 8, "loss.negatives.kind": "random"}
    assert inside_space(params, space) == {
        "model.embed_dim": 8,
        "loss.negatives.kind": "random",
        "loss.negatives.count": 3,
    }


def test_a_study_may_get_more_trials_and_not_fewer(quick, tmp_path):
    place = LocalFolder(tmp_path)
    plan = flatten(quick) | {"data digest": DIGEST, "workers": 1, "search": "optuna", "num_trials": 8}
    write_plan(plan, place)
    check_same_study("mine-1", plan | {"num_trials": 60, "budget": "device", "tradeoff": "none"}, place)
    with pytest.raises(ValueError, match="num_trials was 8, is 4"):
        check_same_study("mine-1", plan | {"num_trials": 4}, place)
    with pytest.raises(ValueError, match=r"budget was 'device', is '1GiB'"):
        check_same_study("mine-1", plan | {"budget": "1GiB"}, place)
    assert json.loads(place.read("study.json"))["num_trials"] == 8


def asha():
    scheduler = ASHAScheduler(time_attr="step", max_t=90, grace_period=10, reduction_factor=3)
    scheduler.set_search_properties("val/miou", "max")
    return scheduler


def decision(scheduler, name, miou):
    """What ASHA decides for a trial that reaches the first rung with a mIoU."""
    trial = SimpleNamespace(trial_id=name)
    scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"step": 10, "val/miou": miou})


def test_further_trials_are_compared_with_those_of_before(tmp_path):
    """The last of four would be the first of its rung, which none is stopped at."""
    before = asha()
    rungs = Rungs(before)
    assert saved_rungs(str(tmp_path)) is None
    for number, miou in enumerate((0.5, 0.6, 0.7)):
        decision(before, f"before {number}", miou)
    CallbackList([tune.Callback(), rungs]).save_to_dir(str(tmp_path), "2026-11-29_10-00-00")
    alone, after = asha(), asha()
    CallbackList([Rungs(after, saved_rungs(str(tmp_path)))]).setup(num_samples=2)
    assert decision(alone, "after", 0.1) == "CONTINUE"
    assert decision(after, "after", 0.1) == "STOP"

    # The same part, resumed: its own scores count, which include those of before.
    resumed = asha()
    again = Rungs(resumed, saved_rungs(str(tmp_path)))
    again.set_state(Rungs(after).get_state())
    again.setup()
    assert len(resumed._brackets[0]._rungs[-1][1]) == 4
