"""The grid of dimensions and negatives: what it holds, what is good enough, and that it grows."""

import runpy
from pathlib import Path

from kiloseg.overrides import override

RULE = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "rule.py"))
Arguments, main, cells, good_enough, read_rows = (
    RULE[name] for name in ("Arguments", "main", "cells", "good_enough", "read_rows")
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


def test_smallest_within_two_percent_of_the_best_mean():
    def row(dim, miou, seed, kind="all", count=63):
        return {"num_classes": "64", "embed_dim": dim, "negatives": kind, "count": count, "seed": seed, "miou": miou}

    rows = [row(4, 0.3, 0), row(8, 0.4, 0), row(8, 0.392, 1), row(16, 0.40, 0), row(16, 0.404, 1), row(64, 0.39, 0)]
    rows += [row(16, 0.2, 0, "random", 2), row(16, 0.1, 0, "random", 8)]
    assert good_enough(rows) == [
        "64 classes, D, all: 8 of 4, 8, 16, 64 (best mIoU 0.4020)",
        "64 classes, K, random: 2 of 2, 8 (best mIoU 0.2000)",
    ]


def test_runs_that_have_a_row_are_not_run_again(quick, tmp_path, capsys):
    run = override(quick, {"trainer.steps": 2, "trainer.batch_size": 4, "data.val_samples": 4})
    path = tmp_path / "rule.csv"
    main(Arguments(run=run, classes=(4,), dims=(4,), counts=(), results=path))
    first = read_rows(path)
    assert [row["count"] for row in first] == ["3"] and 0 <= float(first[0]["miou"]) <= 1
    capsys.readouterr()
    main(Arguments(run=run, classes=(4,), dims=(2, 4), counts=(), results=path))
    assert capsys.readouterr().out.count("seed 0") == 1
    both = read_rows(path)
    assert both[0] == first[0] and [row["embed_dim"] for row in both] == ["4", "2"]
