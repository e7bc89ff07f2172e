"""Classes that are added from examples, and pixels of classes that were never trained, measured on small real runs."""

import csv
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from kiloseg.data.description import read_info
from kiloseg.inference.loading import content_of
from kiloseg.overrides import override
from kiloseg.training.evaluation import segmenter_of
from kiloseg.training.loop import train

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(scope="module")
def adding():
    return runpy.run_path(str(EXPERIMENTS / "add_classes.py"))


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_new_classes_get_a_row_for_every_number_of_examples(adding, quick, squares, tmp_path):
    last = train(override(quick, {"data.num_classes": 4, "trainer.validate_every": 0}), lambda report: None)
    path = tmp_path / "add_classes.csv"
    arguments = adding["Arguments"](source=str(last.checkpoint), data=squares, examples=(1, 3), results=path)
    adding["main"](arguments)
    rows = rows_of(path)
    assert [(row["examples"], row["fit"]) for row in rows] == [
        ("1", "False"),
        ("1", "True"),
        ("3", "False"),
        ("3", "True"),
    ]
    for row in rows:
        assert (row["trained"], row["new"], row["samples"]) == ("4", "2", "11")
        assert all(0 <= float(row[name]) <= 1 for name in ("miou_new", "miou_old", "miou_old_before", "absent_auroc"))
        assert float(row["miou_trained"]) == pytest.approx(last["val/miou"], abs=1e-5)
        assert float(row["seconds_per_class"]) > 0
    fitted = tmp_path / "fitted.csv"
    adding["main"](
        adding["Arguments"](source=str(last.checkpoint), data=squares, examples=(3,), means=False, results=fitted)
    )
    (only,) = rows_of(fitted)
    assert [only[name] for name in ("examples", "fit", "miou_new", "miou_old")] == [
        rows[3][name] for name in ("examples", "fit", "miou_new", "miou_old")
    ]
    whole = adding["Arguments"](source=str(last.checkpoint), data=squares, most_new=0, results=path)
    with pytest.raises(ValueError, match="has all classes of"):
        adding["main"](whole)


def test_rows_that_are_never_nearest_change_nothing_of_old_classes(adding, quick, squares):
    """What is compared before and after is the same: pixels of old classes, on which only a new row that wins is an error."""
    last = train(override(quick, {"data.num_classes": 4, "trainer.validate_every": 0}), lambda report: None)
    content = content_of(str(last.checkpoint))
    segmenter, _ = segmenter_of(content)
    embedded = adding["embed_classes"](segmenter, squares, read_info(squares), ["square 4", "square 5"], 2, 0)
    changed = adding["editing"].add_embedded(content, embedded, head=segmenter.head)
    rows = changed["model"]["head.table.rows_CD"]
    found = []
    for new_rows in (rows[:1].expand(2, -1) * 1.0, -embedded["square 4"][0].mean.float().expand(2, -1)):
        changed["model"]["head.table.rows_CD"] = torch.cat([rows[:4], new_rows])
        model, hidden, before = (
            adding["model_of"](each, "model")
            for each in (changed, adding["under_other_names"](changed, set(embedded)), content)
        )
        evaluations = [adding["evaluate"](each, squares, by_name=True) for each in (before, hidden, model)]
        found.append(adding["old_and_new"](*evaluations, set(embedded)))
    # Equal rows: ties go to the first, which is the old one.
    assert found[0]["miou_old"] == pytest.approx(found[0]["miou_old_before"], abs=1e-6)
    assert all(0 <= each[name] <= 1 for each in found for name in each)


def test_examples_show_the_class_and_are_drawn_by_seed(adding, trained, squares):
    segmenter, _ = segmenter_of(content_of(str(trained.checkpoint)))
    info = read_info(squares)
    names = ["square 4", "square 5"]
    first, again, other = (adding["embed_classes"](segmenter, squares, info, names, 3, seed) for seed in (0, 0, 1))
    assert list(first) == names and [len(each) for each in first.values()] == [3, 3]
    means = [np.stack([one.mean.numpy() for one in each["square 4"]]) for each in (first, again, other)]
    assert np.array_equal(means[0], means[1]) and not np.array_equal(means[0], means[2])
    # A trained model puts the examples of one class nearer to each other than to those of another.
    of_5 = np.stack([one.mean.numpy() for one in first["square 5"]])
    assert (means[0] @ means[0].T).mean() > (means[0] @ of_5.T).mean()


def test_unknown_classes_get_a_row_for_every_head(quick, tmp_path):
    unknown = runpy.run_path(str(EXPERIMENTS / "unknown.py"))
    run = override(quick, {"data.num_classes": 4, "trainer.steps": 2})
    path = tmp_path / "unknown.csv"
    unknown["main"](unknown["Arguments"](run=run, heads=("embedding:all", "dense"), results=path))
    rows = rows_of(path)
    assert [(row["head"], row["trained"], row["absent"]) for row in rows] == [
        ("embedding:all", "4", "2"),
        ("dense", "4", "2"),
    ]
    assert all(0 < float(row["absent_auroc"]) < 1 for row in rows)
    with pytest.raises(ValueError, match=r"--data.num-classes is missing"):
        unknown["main"](unknown["Arguments"](run=override(run, {"data.num_classes": None}), results=path))
