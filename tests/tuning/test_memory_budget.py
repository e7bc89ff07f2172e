"""Settings that do not fit a memory budget are told to Optuna and never launched: real plans, real samplers, no cluster."""

import os
import re
import subprocess
import sys

import optuna
import pytest
import torch

from kiloseg.memory import plan, plan_evaluation
from kiloseg.overrides import override
from kiloseg.tuning.cluster import PACKAGE, UNITS, gpu_share
from kiloseg.tuning.memory_budget import _planned_gib, budget_gib, memory_budget, trials_per_gpu
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


@pytest.mark.parametrize(
    ("pack", "budget", "trials"),
    [
        ("80GiB", "72GiB", 1),
        ("80GiB", "36GiB", 2),
        ("80GiB", "36.1GiB", 1),
        ("80GiB", "12GiB", 6),
        ("24GiB", "5GiB", 4),
    ],
)
def test_plans_of_trials_that_share_a_gpu_take_at_most_nine_tenths_of_it(pack, budget, trials):
    assert trials_per_gpu(pack, budget) == trials
    resources = Search(name="study", pack=pack, budget=budget).resources(has_gpu=False)
    assert resources.gpus_per_worker == gpu_share(trials)
    assert resources.shares_gpu == (trials > 1)


def test_shares_fit_on_a_gpu_as_ray_counts_and_one_more_does_not():
    for trials in range(1, 101):
        units = round(gpu_share(trials) * UNITS)
        assert units * trials <= UNITS < units * (trials + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pack": "80GiB"}, r"--pack 80GiB: expected a --budget such as 12GiB beside it"),
        ({"pack": "much", "budget": "1GiB"}, r"--pack 'much': expected an amount such as 24GiB"),
        (
            {"pack": "8GiB", "budget": "7.3GiB"},
            r"--budget 7\.3GiB: expected at most 7\.2GiB, nine tenths of a GPU of 8 GiB",
        ),
        (
            {"pack": "8GiB", "budget": "1GiB", "gpus_per_worker": 1.0},
            r"gpus_per_worker = 1\.0, pack = '8GiB': expected one of",
        ),
        (
            {"pack": "8GiB", "budget": "1GiB", "workers": 2},
            r"workers = 2, gpus_per_worker = 0\.1428: expected 1 worker",
        ),
        ({"gpus_per_worker": 0.5, "workers": 2}, r"workers = 2, gpus_per_worker = 0\.5: expected 1 worker"),
        (
            {"gpus_per_worker": 1.5},
            r"gpus_per_worker = 1\.5: expected a whole number of GPUs, or a share of one below 1",
        ),
        ({"gpus_per_worker": 0.00001}, r"gpus_per_worker = 1e-05: expected 0, or at least 0\.0001"),
        ({"gpus_per_worker": -1.0}, r"expected at least 1 worker, more than 0 CPUs and 0 or more GPUs"),
        ({"cpus_per_worker": float("nan")}, r"expected at least 1 worker, more than 0 CPUs and 0 or more GPUs"),
    ],
)
def test_shares_of_a_gpu_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Search(name="study", **options)


def test_memory_of_a_gpu_that_is_not_here_has_to_be_given():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"--pack device: this machine has no GPU; give the memory .* --pack 24GiB"):
        Search(name="study", pack="device", budget="1GiB")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_process_that_shares_a_gpu_runs_out_of_memory_at_its_share():
    """The limit stays with a process, so this is one of its own."""
    code = """
import torch
from kiloseg.tuning.cluster import Resources
from kiloseg.tuning.trial import keep_to_share
keep_to_share(Resources(gpus_per_worker=0.1))
total = torch.cuda.get_device_properties(0).total_memory
kept = torch.empty(int(0.09 * total), dtype=torch.uint8, device="cuda")
try:
    torch.empty(int(0.02 * total), dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError:
    print("ran out of memory")
"""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "ran out of memory\n"
