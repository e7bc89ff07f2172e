"""The best trials again with other seeds, and when trials are first compared."""

import dataclasses
import math

import pandas
import pytest
from trial_rows import row

from kiloseg.overrides import override
from kiloseg.tuning.confirmation import confirmation_table, confirmations, points_to_repeat
from kiloseg.tuning.early_stopping import first_rung, scheduler_of
from kiloseg.tuning.grid import complete_points
from kiloseg.tuning.search import Search
from kiloseg.tuning.space import Space, choice


def tried(trial, miou, **overrides):
    return dataclasses.replace(row(trial, miou, 1.0), overrides=overrides)


LUCKY = tried("lucky", 0.9, **{"model.embed_dim": 8, "loss.negatives.kind": "all"})
STEADY = tried("steady", 0.8, **{"model.embed_dim": 16, "loss.negatives.kind": "random", "loss.negatives.count": 3})
BROKEN = tried("broken", 0.7, **{"model.embed_dim": 32, "loss.negatives.kind": "all"})


def test_mean_over_seeds_decides_and_not_the_luckiest_trial(quick):
    trials = [LUCKY, STEADY, BROKEN]
    points = complete_points(quick, points_to_repeat(trials, [1, 2, 3]))
    assert len(points) == 9
    assert {point["trainer.seed"] for point in points} == {1, 2, 3}
    assert len({tuple(point) for point in points}) == 1, "Tune wants the same names at every point"
    mious = [0.4, 0.5, 0.9, 0.7, 0.8, 0.75, None, None, math.nan]
    repeats = [
        tried(f"r{number}", miou, **point) for number, (miou, point) in enumerate(zip(mious, points, strict=True))
    ]
    steady, lucky, broken = confirmations(trials, repeats[::-1])
    assert [each.trial.trial for each in (steady, lucky, broken)] == ["steady", "lucky", "broken"]
    assert steady.mean == pytest.approx(0.75) and steady.spread == pytest.approx(0.05)
    assert lucky.mean == pytest.approx(0.6) and lucky.spread == pytest.approx(math.sqrt(0.07))
    assert len(broken.repeats) == 3 and not broken.mious and math.isnan(broken.mean)
    assert steady.best.trial == "r4" and broken.best is BROKEN

    table = confirmation_table([steady, lucky, broken])
    assert list(table["mean"][:2]) == pytest.approx([0.75, 0.6])
    assert list(table["seeds"]) == [3, 3, 0]
    assert list(table["lowest"][:2]) == [0.7, 0.4] and list(table["highest"][:2]) == [0.8, 0.9]
    assert list(table["val/miou of the search"]) == [0.8, 0.9, 0.7]
    assert pandas.isna(table["loss.negatives.count"][1])
    assert "trainer.seed" not in table


def test_points_have_what_their_head_requires(quick):
    """Completing a point does not take a value from the base that the point's own head forbids."""
    (dense, embedding) = complete_points(quick, [{"model.head": "dense"}, {"optimizer.lr": 0.5}])
    assert dense == {"model.head": "dense", "optimizer.lr": quick.optimizer.lr}
    assert embedding == {"model.head": "embedding", "optimizer.lr": 0.5}


@pytest.mark.parametrize(
    ("every", "warmup", "searched", "expected"),
    [
        (10, 0, None, 10),
        (10, 10, None, 10),
        (10, 11, None, 20),
        (10, 0, (5, 35), 40),
        (25, 80, None, 100),
        (0, 5, None, 0),
    ],
)
def test_first_rung_is_the_first_validation_after_warm_up(quick, every, warmup, searched, expected):
    base = override(quick, {"trainer.steps": 200, "trainer.validate_every": every, "optimizer.warmup_steps": warmup})
    dimensions = (choice("optimizer.warmup_steps", searched),) if searched else ()
    space = Space(base, dimensions)
    assert first_rung(space) == expected
    scheduler = scheduler_of(Search(name="s"), space)
    if expected:
        rungs = scheduler._brackets[0]._rungs
        assert min(step for step, _ in rungs) == expected, "ASHA compares no trial before"
    else:
        assert type(scheduler).__name__ == "FIFOScheduler"


def test_nothing_is_stopped_where_warm_up_never_ends(quick):
    base = override(quick, {"trainer.steps": 40, "trainer.validate_every": 10, "optimizer.warmup_steps": 35})
    assert type(scheduler_of(Search(name="s"), Space(base, ()))).__name__ == "FIFOScheduler"


def test_counts_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="confirm = -1, confirm_seeds = 3: expected 0 or more trials"):
        Search(name="s", confirm=-1)
    with pytest.raises(ValueError, match=r"--best-under 'little': expected an amount such as 24GiB"):
        Search(name="s", best_under="little")
