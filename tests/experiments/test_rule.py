"""The grid of dimensions and negatives: what it holds, what is good enough, and that it grows."""

import runpy
from pathlib import Path

import pytest

from kiloseg.overrides import override

RULE = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "rule.py"))
Arguments, main, cells, read_rows = (RULE[name] for name in ("Arguments", "main", "cells", "read_rows"))
Features, curves_of, good_enough, smallest_size, growth = (
    RULE[name] for name in ("Features", "curves_of", "good_enough", "smallest_size", "growth")
)


def test_grid_has_every_dimension_and_the_counts_that_classes_have_room_for(quick):
    found = list(cells(Arguments(run=quick, classes=(4, 6), dims=(2, 8), counts=(2, 4), seeds=(0, 1))))
    kinds = [
        (config.data.num_classes, config.model.embed_dim, config.loss.negatives.kind, config.loss.negatives.count)
        for config in found
        if config.trainer.seed == 0
    ]
    assert [kind[:3] for kind in kinds if kind[2] == "all"] == [(c, d, "all") for c in (4, 6) for d in (2, 8)]
    assert [kind for kind in kinds if kind[2] != "all"] == [
        *((4, 4, kind, 2) for kind in ("random", "nearest")),
        *((6, 4, kind, count) for kind in ("random", "nearest") for count in (2, 4)),
    ]
    assert len(found) == 2 * len(kinds)


SAME = {"steps": 40, "batch": 4, "crop": 64, "start": "none"}


def test_smallest_within_two_percent_of_the_best_mean():
    def row(dim, miou, seed, kind="all", count=63):
        row = {
            "num_classes": "64",
            "embed_dim": str(dim),
            "negatives": kind,
            "count": count,
            "seed": seed,
            "miou": miou,
        }
        return row | {name: str(value) for name, value in SAME.items()}

    rows = [row(4, 0.3, 0), row(8, 0.4, 0), row(8, 0.392, 1), row(16, 0.40, 0), row(16, 0.404, 1), row(64, 0.39, 0)]
    rows += [row(16, 0.2, 0, "random", 2), row(16, 0.1, 0, "random", 8)]
    rows += [row(32, 0.9, 0) | {"steps": "8"}, row(8, 0.9, 0, "random", 4), row(4, 0.9, 0) | {"start": "other"}]
    assert good_enough(curves_of(rows, SAME | {"embed_dim": 16})) == [
        "64 classes, D, all: 8 of 4, 8, 16, 64 (best mIoU 0.4020)",
        "64 classes, K, random: 2 of 2, 8 (best mIoU 0.2000)",
    ]


def test_smallest_size_lies_between_those_that_were_tried():
    assert smallest_size({4: 0.49, 16: 0.98, 64: 1.0}) == pytest.approx(16)
    assert smallest_size({4: 0.97, 16: 0.99, 64: 1.0}) == pytest.approx(8)
    assert smallest_size({4: 0.97, 16: 1.01, 64: 0.99}) == pytest.approx(4 * 4 ** (1 / 3)), "scatter is evened out"
    assert smallest_size({4: 1.0, 16: 0.5}) == 4, "more is worse"


def test_table_of_another_version_is_refused(quick, tmp_path):
    path = tmp_path / "rule.csv"
    path.write_text("num_classes,miou\n8,0.2\n")
    with pytest.raises(ValueError, match=r"rule\.csv has columns num_classes, miou: expected num_classes, embed_dim"):
        main(Arguments(run=quick, results=path))


def test_growth_finds_the_power():
    """Curves that are enough at 2 C ** 0.5, and one method with too few class counts."""
    curves = {}
    for C in (16, 64, 256, 1024):
        enough = 2 * C**0.5
        curves["D, all", C] = {seed: {2: 0.1, int(enough): 0.98, 4096: 1.0} for seed in (0, 1)}
    curves["K, random", 16] = curves["K, random", 64] = {0: {2: 1.0}}
    assert growth(curves) == ["D, all: 2 * C ** 0.50 (95 % interval of the power 0.50 to 0.50, 8 curves)"]


def test_runs_that_have_a_row_are_not_run_again(quick, tmp_path, capsys):
    run = override(quick, {"trainer.steps": 2, "trainer.batch_size": 4, "data.val_samples": 4})
    path = tmp_path / "rule.csv"
    main(Arguments(run=run, classes=(4,), dims=(4,), counts=(), results=path))
    first = read_rows(path, RULE["COLUMNS"])
    assert [row["count"] for row in first] == ["3"] and 0 <= float(first[0]["miou"]) <= 1
    assert first[0]["start"] == "none"
    capsys.readouterr()
    main(Arguments(run=run, classes=(4,), dims=(2, 4), counts=(), results=path))
    assert capsys.readouterr().out.count("seed 0") == 1
    both = read_rows(path, RULE["COLUMNS"])
    assert both[0] == first[0] and [row["embed_dim"] for row in both] == ["4", "2"]
    assert path.with_suffix(".png").stat().st_size > 1000


def test_runs_from_a_checkpoint_have_rows_of_their_own(quick, trained, tmp_path):
    run = override(quick, {"trainer.steps": 2, "trainer.batch_size": 4, "data.val_samples": 4})
    path = tmp_path / "rule.csv"
    main(Arguments(run=run, classes=(6,), dims=(8,), counts=(), results=path))
    started = override(run, {"model.weights": str(Path(trained["checkpoint"]).parent)})
    main(Arguments(run=started, classes=(6,), dims=(8,), counts=(), results=path, crops=8))
    one, other = read_rows(path, RULE["COLUMNS"])
    assert [one["start"], other["start"]] == ["none", Path(started.model.weights).name]
    assert one["pixel_accuracy"] != other["pixel_accuracy"]


def test_a_table_learns_over_fixed_features(quick, trained):
    """More than the background alone, which gives 0.1, and the same numbers twice."""
    config = override(quick, {"model.weights": str(Path(trained["checkpoint"]).parent), "trainer.steps": 200})
    features = Features(config, 24)
    assert len(features.crops) == len(features.labels) == 24
    short = features.train(override(config, {"trainer.steps": 1}))
    found = features.train(config)
    assert found["miou"] > max(short["miou"], 0.15)
    assert features.train(config)["miou"] == found["miou"]
    few = features.train(override(config, {"loss.negatives.kind": "random", "loss.negatives.count": 2}))
    assert few["miou"] not in (found["miou"], short["miou"])
