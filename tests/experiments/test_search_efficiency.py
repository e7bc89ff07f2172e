"""The comparison of searches runs every method once per seed, and counts the training of each."""

import runpy
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

ROOT = Path(__file__).parents[2]
SHORT = (
    *(
        "--data.num-classes",
        "6",
        "--data.val-samples",
        "4",
        "--model.backbone",
        "test_resnet",
        "--model.weights",
        "none",
    ),
    *(
        "--trainer.steps",
        "4",
        "--trainer.validate-every",
        "2",
        "--trainer.batch-size",
        "4",
        "--optimizer.warmup-steps",
        "0",
    ),
)


def compare(squares, results, *flags):
    command = [
        sys.executable,
        "experiments/search_efficiency.py",
        "--data.path",
        str(squares),
        "--results",
        str(results),
    ]
    ran = subprocess.run([*command, *SHORT, *flags], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.slow
def test_every_method_gets_a_row_and_is_not_run_again(squares, tmp_path):
    results = tmp_path / "found.csv"
    code, printed = compare(squares, results, "--trials", "8", "--seeds", "0")
    assert code == 0, printed
    rows = pandas.read_csv(results).set_index("method")
    assert list(rows.index) == ["random", "plain", "kiloseg"]
    curves = pandas.read_csv(tmp_path / "found_curves.csv")
    for method, row in rows.iterrows():
        points = curves[curves.method == method]
        assert points.trial.nunique() == 8
        assert points.trial_seconds.is_monotonic_increasing
        assert points.miou.max() == pytest.approx(row.best_miou)
        assert points.trial_seconds.max() == pytest.approx(row.trial_seconds)
        assert 0 < row.search_seconds < row.trial_seconds
    assert (curves[curves.method == "random"].groupby("trial").step.max() == 4).all()
    assert curves[curves.method == "kiloseg"].groupby("trial").step.max().min() == 2  # some trial was stopped early
    reached = curves[curves.method.eq("random") & curves.miou.ge(rows.loc["random", "best_miou"] - 1e-6)].trial_seconds
    assert rows.loc["random", "seconds_to_random_best"] == pytest.approx(reached.iloc[0])

    before = results.read_text()
    code, printed = compare(squares, results, "--trials", "8", "--seeds", "0")
    assert code == 0, printed
    assert results.read_text() == before


def test_methods_that_are_not_known(squares, tmp_path):
    code, printed = compare(squares, tmp_path / "found.csv", "--methods", "grid")
    assert code != 0
    assert "--methods grid: expected random, plain and kiloseg" in printed


def test_mean_curve_comes_to_what_random_search_has_at_its_end():
    """Seed 1 of one method never comes to its own random best, yet the means meet; a seed that a method lacks is left out."""
    mean_curves = runpy.run_path(str(ROOT / "experiments" / "search_efficiency.py"))["mean_curves"]

    def points(method, seed, *found):
        return [
            {"method": method, "seed": str(seed), "trial_seconds": str(seconds), "miou": str(miou)}
            for seconds, miou in found
        ]

    rows = [*points("random", 0, (10, 0.2), (20, 0.1), (30, 0.4)), *points("random", 1, (15, 0.6))]
    rows += [
        *points("kiloseg", 0, (4, 0.3), (8, 0.6)),
        *points("kiloseg", 1, (5, 0.1), (9, 0.5)),
        *points("random", 2, (1, 0.9)),
    ]
    rows += [*points("plain", 0, (6, 0.4)), *points("plain", 1, (7, 0.5))]
    assert mean_curves(rows) == [
        "random: mean best mIoU 0.5000 over 2 seeds, 0.5000 (random's) reached after 30 trial-seconds",
        "kiloseg: mean best mIoU 0.5500 over 2 seeds, 0.5000 (random's) reached after 9 trial-seconds",
        "plain: mean best mIoU 0.4500 over 2 seeds, 0.5000 (random's) reached never",
    ]
    assert mean_curves([]) == []
