"""Two objectives: real samplers on a formula of mIoU and memory, Pareto fronts worked out by hand, and the best within a budget."""

import math

import numpy as np
import optuna
import pytest
from trial_rows import ROWS, row

from kiloseg.config import Config
from kiloseg.tuning.early_stopping import scheduler_of
from kiloseg.tuning.objectives import MEMORY, OBJECTIVES, TIME, pareto_front
from kiloseg.tuning.ranking import best_row
from kiloseg.tuning.search import Search
from kiloseg.tuning.searcher import BudgetedSearcher, sampler_of
from kiloseg.tuning.space import Space, choice, log
from kiloseg.tuning.summary import front_figure


def test_front_has_what_no_other_beats():
    assert [each.trial for each in pareto_front(ROWS, MEMORY)] == ["small", "middle", "wide", "large"]
    assert [each.trial for each in pareto_front(ROWS, TIME)] == ["small", "wide", "large"]
    assert pareto_front([row("oom", None, None)], MEMORY) == []


def test_front_is_that_of_optuna():
    rng = np.random.default_rng(0)
    rows = [row(str(number), *rng.integers(1, 12, 2).astype(float)) for number in range(60)]
    study = optuna.create_study(directions=["maximize", "minimize"])
    for each in rows:
        study.add_trial(optuna.create_trial(values=[each.miou, each.peak_memory_gib]))
    expected = {tuple(trial.values) for trial in study.best_trials}
    assert {(each.miou, each.peak_memory_gib) for each in pareto_front(rows, MEMORY)} == expected


def test_best_within_a_budget_counts_training_and_validation():
    assert best_row(ROWS).trial == "large"
    assert best_row(ROWS, 12.0).trial == "middle", "the validation of wide needs more"
    assert best_row(ROWS, 13.0).trial == "wide"
    assert best_row(ROWS, 1.0) is None


def test_front_is_drawn_as_steps():
    figure = front_figure(ROWS, MEMORY)
    (axes,) = figure.axes
    front = next(line for line in axes.lines if line.get_label() == "Pareto front")
    assert front.get_xydata().tolist() == [[2.0, 0.3], [11.0, 0.6], [11.5, 0.7], [20.0, 0.8]]
    assert axes.get_xlabel() == "peak memory of a training step (GiB)"


def result_of(settings, **more):
    """mIoU rises with the dimension up to 64, at a learning rate of 1e-3; memory is proportional to the dimension."""
    dim, lr = settings["model.embed_dim"], settings["optimizer.lr"]
    score = min(dim, 64) / 64 * math.exp(-abs(math.log10(lr) + 3))
    numbers = {"val/miou": score, "peak_memory_gib": dim / 16, "train/images_per_s": 1000 / dim}
    return numbers | {"training_iteration": 1, "outcome": "finished"} | more


def searched(study, tradeoff, trials):
    space = Space(Config(), (log("model.embed_dim", 4, 512), log("optimizer.lr", 1e-5, 1e-1)))
    searcher = BudgetedSearcher(space, [], sampler_of(study), objectives=OBJECTIVES[tradeoff])
    for number in range(trials):
        settings = searcher.suggest(str(number))
        searcher.on_trial_result(str(number), result_of(settings))
        searcher.on_trial_complete(str(number), result_of(settings))
    return searcher.study


@pytest.mark.parametrize("tradeoff", ["memory", "time"])
def test_sampler_serves_both_objectives(tradeoff):
    """It spends its trials where mIoU can still be bought, and not on dimensions that only cost."""
    study = searched(Search(name="s", num_trials=60, tradeoff=tradeoff), tradeoff, 60)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert all(len(trial.values) == 2 for trial in study.trials)
    late = [trial.params["model.embed_dim"] for trial in study.trials[30:]]
    assert sum(dim > 80 for dim in late) < 0.25 * len(late), sorted(late)
    front = [trial.params["model.embed_dim"] for trial in study.best_trials]
    assert len(front) >= 4 and min(front) < 16 and max(front) > 30


def test_trials_that_fail_are_infeasible():
    space = Space(Config(), (choice("model.embed_dim", [4, 8]), log("optimizer.lr", 1e-4, 1e-2)))
    searcher = BudgetedSearcher(space, [], optuna.samplers.TPESampler(seed=0), objectives=OBJECTIVES["memory"])
    settings = searcher.suggest("1")
    searcher.on_trial_complete("1", {"val/miou": 0.0, "outcome": "oom", "training_iteration": 1})
    searcher.on_trial_complete("1", result_of(settings))  # a repetition, which a resumed study may have
    searcher.suggest("2")
    searcher.on_trial_complete("2", error=True)
    good = searcher.suggest("3")
    searcher.on_trial_complete("3", result_of(good))
    assert [trial.state.name for trial in searcher.study.trials] == ["PRUNED", "FAIL", "COMPLETE"]
    assert searcher.study.trials[0].constraints == {"failed": 1.0}
    assert [trial.number for trial in searcher.study.best_trials] == [2]


def test_no_trial_is_stopped_for_mious_sake_where_memory_counts_too(quick):
    stopping = scheduler_of(Search(name="s"), Space(quick, ()))
    assert type(stopping).__name__ == "AsyncHyperBandScheduler"
    assert type(scheduler_of(Search(name="s", tradeoff="memory"), Space(quick, ()))).__name__ == "FIFOScheduler"
