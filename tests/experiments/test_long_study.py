"""Heads under equal memory and time: what is equal, and a study that is broken off and goes on."""

import csv
import dataclasses
import runpy
from pathlib import Path

import pytest

from kiloseg.memory import plan
from kiloseg.overrides import override

STUDY = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "long_study.py"))
Arguments, main, cells, TimedRun = (STUDY[name] for name in ("Arguments", "main", "cells", "TimedRun"))


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def arguments(quick, tmp_path):
    return Arguments(
        run=override(quick, {"data.num_classes": 6}),
        classes=(4,),
        heads=("embedding:random", "dense", "official:paper"),
        hours=0.0006,  # 2 s
        budget="0.046GiB",
        validations=2,
        folder=tmp_path / "study",
        results=tmp_path / "long.csv",
    )


def test_every_head_gets_the_largest_batch_in_the_budget(arguments):
    found = dict(cells(dataclasses.replace(arguments, heads=(*arguments.heads, "prototype"))))
    assert list(found) == ["embedding:random", "dense", "official:paper", "prototype"]
    assert (found["prototype"].model.head, found["prototype"].loss.negatives.kind) == ("prototype", "all")
    for config in found.values():
        assert plan(config) <= 0.046 < plan(override(config, {"trainer.batch_size": config.trainer.batch_size + 1}))
    paper = found["official:paper"]
    assert (paper.model.embed_dim, paper.loss.negatives.count) == (12, 3)  # 7, or all other classes
    assert found["embedding:random"].model.embed_dim == 4


def test_study_ends_with_its_hours_and_goes_on_where_it_was(arguments, capsys):
    main(arguments)
    table, curve = rows(arguments.results), rows(arguments.results.with_name("long_curves.csv"))
    assert [row["head"] for row in table] == list(arguments.heads)
    assert list(table[0]) == list(STUDY["COLUMNS"])
    for row in table:
        assert float(row["train_hours"]) >= 0.0006 and int(row["images_seen"]) == int(row["steps"]) * int(row["batch"])
        assert 0 < float(row["miou"]) <= 1 and row["miou_style"] == ""  # the data set has no such split
        assert 0 < float(row["peak_memory_gib"]) <= 0.046
    assert len(curve) == 6 and [row["budget_hours"] for row in curve] == ["0.0006"] * 6
    assert int(curve[0]["steps"]) < int(curve[1]["steps"])
    main(arguments)
    assert rows(arguments.results) == table, "what has a row is not run again"
    main(dataclasses.replace(arguments, heads=("dense",), hours=0.0003))
    shorter = rows(arguments.results)[len(table) :]
    assert [row["head"] for row in shorter] == ["dense"], "a row of other hours is another run's"
    assert 0.0003 <= float(shorter[0]["train_hours"]) < float(table[1]["train_hours"])

    # Without its row the run goes on from its checkpoint, at the end of its hours.
    arguments.results.unlink()
    main(arguments)
    again = rows(arguments.results)
    assert [(row["steps"], row["miou"]) for row in again] == [(row["steps"], row["miou"]) for row in table]


def test_rate_falls_with_time_and_counts_from_the_checkpoint(arguments, tmp_path):
    config = dict(cells(arguments))["dense"]
    run = TimedRun(config, hours=0.001, processor=True, folder=tmp_path / "run")
    run.train_until(0.0005)
    later = TimedRun(config, hours=0.001, processor=True, folder=tmp_path / "run")
    assert (later.step, later.seconds, later.peak_gib) == (run.step, run.seconds, run.peak_gib)
    factors = [later._rate_factor()]
    later.seconds *= 1.5
    assert 0 < later._rate_factor() < factors[0] < 0.6


def test_run_starts_from_the_checkpoint_of_another_one(arguments, tmp_path, capsys):
    config = dict(cells(arguments))["embedding:random"]
    first = TimedRun(config, hours=0.0001, processor=True, folder=tmp_path / "first")
    first.train_until(0.0001)
    more = override(config, {"model.weights": str(tmp_path / "first"), "data.num_classes": 5})
    second = TimedRun(more, hours=0.0001, processor=True, folder=tmp_path / "second")
    assert "4 of 5 classes start from the 4 there, by name" in capsys.readouterr().out
    table, former = (run.segmenter.state_dict()["head.table.rows_CD"] for run in (second, first))
    assert table[:4].equal(former), "classes of both runs keep their vectors"
    assert (second.step, second.seconds) == (0, 0.0), "its own time begins with it"
    assert STUDY["network_name"](more.model) == STUDY["network_name"](config.model) + ", from first"


def test_impossible_settings_are_refused(arguments, quick):
    with pytest.raises(ValueError, match="--hours 0: expected more than 0"):
        Arguments(run=quick, hours=0)
    with pytest.raises(ValueError, match=r"--data\.path is missing"):
        main(Arguments(run=override(quick, {"data.path": ""})))
