"""Settings that do not fit a memory budget are told to Optuna and never launched: real plans, real samplers, no cluster."""

import re

import optuna
import pytest
import torch

from kiloseg.memory import plan, plan_evaluation
from kiloseg.overrides import override
from kiloseg.tuning.memory_budget import _planned_gib, budget_gib, memory_budget
from kiloseg.tuning.ray_workarounds.searcher import saved_study
from kiloseg.tuning.search import Search
from kiloseg.tuning.searcher import ATTEMPTS, MEMORY, PLANNED, BudgetedSearcher, infeasible_trials
from kiloseg.tuning.space import Space, choice, log

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def base(quick):
    return override(quick, {"data.val_batch_size": 1})


@pytest.fixture
def searcher_of(base):
    def made(text, first=(), *, sampler=None, workers=1, dimensions=None):
        sampler = sampler or optuna.samplers.RandomSampler(seed=0)
        budget = memory_budget(text, base, workers=workers, gpus_per_worker=None)
        space = Space(
            base, dimensions or (choice("trainer.batch_size", [2, 4, 8, 16, 32]), log("optimizer.lr", 1e-4, 1e-2))
        )
        return BudgetedSearcher(space, first, sampler, budget=budget)

    return made


def gib(base, batch_size):
    return plan(override(base, {"trainer.batch_size": batch_size}))


def test_what_does_not_fit_is_never_suggested_and_optuna_knows_why(base, searcher_of, capsys):
    limit = gib(base, 8)
    first = [{"trainer.batch_size": 32, "optimizer.lr": 1e-3}, {"trainer.batch_size": 8, "optimizer.lr": 2e-3}]
    searcher = searcher_of(f"{limit:.12f}GiB", first)
    searcher.find_first()
    suggested = [searcher.suggest(str(number)) for number in range(12)]
    assert suggested[0] == first[1], "the first of the first trials does not fit and is passed over"
    for settings in suggested:
        assert settings["trainer.batch_size"] <= 8
    passed_over = infeasible_trials(searcher.study)
    assert passed_over[0].params == first[0]
    assert len(passed_over) > 2
    for trial in passed_over:
        assert trial.state == optuna.trial.TrialState.PRUNED
        assert trial.params["trainer.batch_size"] > 8
        planned = gib(base, trial.params["trainer.batch_size"])
        assert trial.user_attrs[PLANNED] == pytest.approx(planned)
        assert trial.constraints[MEMORY] == pytest.approx(planned - limit, abs=1e-9)
    running = searcher.study.get_trials(states=[optuna.trial.TrialState.RUNNING])
    assert len(running) == 12
    assert all(trial.constraints[MEMORY] <= 0 for trial in running)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(passed_over)
    assert re.fullmatch(
        r"not run, planned at [\d.]+ GiB of [\d.]+: trainer\.batch_size 32, optimizer\.lr 0\.001", lines[0]
    )


def test_sampler_learns_where_memory_ends(searcher_of, base):
    """TPE asks less and less for what does not fit; a random sampler asks for it as often as at first."""
    shares = {}
    for name, sampler in {
        "random": optuna.samplers.RandomSampler(seed=1),
        "tpe": optuna.samplers.TPESampler(seed=1, n_startup_trials=10),
    }.items():
        searcher = searcher_of(f"{gib(base, 5):.12f}GiB", sampler=sampler)
        for number in range(60):
            settings = searcher.suggest(str(number))
            score = 1 - abs(settings["optimizer.lr"] - 1e-3)
            searcher.on_trial_complete(str(number), {"val/miou": score, "training_iteration": 1})
        half = next(trial.number for trial in searcher.study.trials if trial.user_attrs.get("trial") == "30")
        late = [trial for trial in searcher.study.trials if trial.number >= half]
        shares[name] = sum(trial.constraints[MEMORY] > 0 for trial in late) / len(late)
    assert shares["random"] > 0.4
    assert shares["tpe"] < 0.75 * shares["random"], shares


def test_budget_that_nothing_fits_is_refused_before_anything_runs(searcher_of, base):
    least = gib(base, 2)
    with pytest.raises(
        ValueError,
        match=rf"--budget: none of {ATTEMPTS} settings fits 0\.0001 GiB; the smallest is planned at {least:.4g} GiB",
    ):
        searcher_of("0.0001GiB").find_first()


def test_search_ends_where_nothing_more_fits(searcher_of, caplog):
    searcher = searcher_of("0.0001GiB")
    assert searcher.suggest("1") == searcher.FINISHED
    assert "the search ends early" in caplog.text


def test_only_settings_that_change_memory_are_planned_again(searcher_of):
    searcher = searcher_of("1000GiB", dimensions=(choice("model.embed_dim", [4, 5]), log("optimizer.lr", 1e-4, 1e-2)))
    before = _planned_gib.cache_info().misses
    for number in range(20):
        searcher.suggest(str(number))
    assert _planned_gib.cache_info().misses - before == 2


def test_validation_counts_as_well(base):
    """Its images are whole, and may need more than the training step."""
    wide = override(base, {"data.val_batch_size": 11, "trainer.batch_size": 2, "model.embed_dim": 64})
    budget = memory_budget("1GiB", wide, workers=1, gpus_per_worker=None)
    images, height, width = budget.validation
    assert images == 11
    evaluation = plan_evaluation(override(wide, {"data.val_batch_size": images}), size=(height, width))
    assert budget.planned_gib({}) == pytest.approx(max(evaluation, plan(wide)))


def test_workers_share_a_batch(base):
    budget = memory_budget("1GiB", base, workers=4, gpus_per_worker=None)
    assert budget.planned_gib({"trainer.batch_size": 32}) == pytest.approx(gib(base, 8))


def test_settings_that_cannot_be_planned_are_launched(searcher_of, caplog):
    searcher = searcher_of("1GiB", dimensions=(choice("model.backbone", ["no_such_network"]),))
    assert searcher.suggest("1") == {"model.backbone": "no_such_network"}
    assert "the memory of a trial cannot be planned" in caplog.text


def test_device_is_nine_tenths_of_the_smallest_gpu_and_no_limit_without_one():
    if not torch.cuda.is_available():
        assert budget_gib("device") is None
        return
    sizes = [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    assert budget_gib("device") == pytest.approx(0.9 * min(sizes) / 2**30)
    assert budget_gib("device", share=0.5) == pytest.approx(0.45 * min(sizes) / 2**30)


def test_amount_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"--budget 'much': expected an amount such as 24GiB"):
        Search(name="study", budget="much")


def test_saved_study_has_what_was_passed_over(searcher_of, base, tmp_path):
    searcher = searcher_of(f"{gib(base, 4):.12f}GiB")
    for number in range(5):
        searcher.suggest(str(number))
    assert saved_study(str(tmp_path)) is None
    searcher.save_to_dir(str(tmp_path), "2026-11-29_10-00-00")
    study = saved_study(str(tmp_path))
    assert len(infeasible_trials(study)) == len(infeasible_trials(searcher.study)) > 0
    assert [trial.params for trial in study.trials] == [trial.params for trial in searcher.study.trials]
