"""Evaluation in detail: numbers by other ways, any number of workers, changed classes, and the report in a real browser."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import torch.nn.functional as F
from browser import needs_browser, shown

import kiloseg
from kiloseg import cli
from kiloseg.data.description import read_info
from kiloseg.inference import editing
from kiloseg.inference.counting import Task, Views, count_share
from kiloseg.inference.counts import Counts
from kiloseg.inference.groups import levels_of
from kiloseg.inference.loading import content_of, model_of
from kiloseg.inference.matching import match_classes
from kiloseg.inference.views import averaged_outputs
from kiloseg.metrics import Histogram, auroc
from kiloseg.models.heads import Candidates
from kiloseg.overrides import override
from kiloseg.tracking.runs import Tracker

NAMES = ["background", *(f"square {number}" for number in range(1, 6))]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(trained):
    return kiloseg.load(trained.checkpoint, device="cpu")


@pytest.fixture(scope="module")
def whole(model, squares):
    return kiloseg.evaluate(model, squares, progress=False)


def same(first, second):
    """Whether two evaluations have the same numbers, to the last bit."""
    return (
        json.dumps(first.metrics) == json.dumps(second.metrics)
        and first.table == second.table
        and np.array_equal(first.reliability, second.reliability, equal_nan=True)
    )


def test_evaluate_gives_the_miou_of_training_and_more(trained, squares, tmp_path):
    words = ["evaluate", str(trained.checkpoint), "--data", str(squares), "--out", str(tmp_path / "out")]
    cli.main(words)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["miou"] == pytest.approx(trained["val/miou"], abs=1e-9) and metrics["miou"] > 0.2
    assert metrics["pixel_accuracy"] == pytest.approx(trained["val/pixel_accuracy"], abs=1e-9)
    assert (metrics["samples"], metrics["classes"], metrics["data"]) == (11, 6, "squares")
    with (tmp_path / "out" / "classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == NAMES
    iou = np.array([float(row["iou"]) for row in rows])
    pixels = np.array([int(row["pixels"]) for row in rows])
    assert iou.mean() == pytest.approx(metrics["miou"])
    assert (iou * pixels).sum() / pixels.sum() == pytest.approx(metrics["frequency_weighted_iou"])
    order = np.argsort([-int(row["train_samples"]) for row in rows], kind="stable")
    assert [metrics[f"{third}_miou"] for third in ("head", "medium", "tail")] == pytest.approx(
        iou[order].reshape(3, 2).mean(1)
    )
    assert pyarrow.parquet.read_table(tmp_path / "out" / "classes.parquet")["iou"].to_pylist() == pytest.approx(
        iou.tolist()
    )
    assert metrics["pixel_accuracy"] < metrics["top5_accuracy"] <= 1
    wrong = round((1 - metrics["pixel_accuracy"]) * pixels.sum())
    assert sum(pair["pixels"] for pair in metrics["confused"]) == wrong > 0
    assert 0 <= metrics["expected_calibration_error"] < 0.5 and 0 < metrics["boundary_miou"] < 1
    with pytest.raises(SystemExit, match=r"metrics.json exists; give --overwrite"):
        cli.main(words)


def test_evaluate_refuses_other_classes(model, squares, tmp_path):
    info = json.loads((squares / "dataset.json").read_text())
    for path in squares.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "dataset.json").unlink()
    info["classes"][2] = "circle"
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"has class 2 \('circle'\) where the model has 2 \('square 2'\)"):
        kiloseg.evaluate(model, tmp_path, progress=False)


@pytest.mark.timeout(900)
def test_three_workers_count_as_one(model, squares, whole):
    assert same(kiloseg.evaluate(model, squares, workers=3, progress=False), whole)
    assert len(whole.shown) == 6 and whole.shown[0].image.shape == (64, 64, 3)


def test_shares_of_any_number_of_workers_add_up(model, squares):
    info = read_info(squares)
    data = override(model.config.data, {"path": str(squares), "val_batch_size": 1})
    task = Task(data=data, info=info, matching=match_classes(model.classes, data, info), views=Views())
    whole, _ = count_share(model, task, 0, 1, lambda: None)
    for world in (2, 3, 11, 13):
        total = Counts(6, [], background=0)
        for rank in range(world):
            total.merge(count_share(model, task, rank, world, lambda: None)[0].state())
        assert all(
            np.array_equal(one, other) for one, other in zip(total.state()[:-2], whole.state()[:-2], strict=True)
        )
        assert total.confused.most(99) == whole.confused.most(99)


def test_an_error_in_a_worker_names_the_file(model, squares, tmp_path):
    shutil.copytree(squares, tmp_path / "damaged")
    shard = tmp_path / "damaged" / "val-000001.tar"
    content = bytearray(shard.read_bytes())
    content[512:712] = bytes(200)  # the beginning of its first image; damage further on need not be seen by a decoder
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"val-000001\.tar"):
        kiloseg.evaluate(model, tmp_path / "damaged", workers=2, progress=False)


def test_a_window_as_large_as_the_image_changes_nothing_and_a_smaller_one_little(model, squares, whole):
    assert same(kiloseg.evaluate(model, squares, views=Views(tile=64), progress=False), whole)
    small = kiloseg.evaluate(model, squares, views=Views(tile=32), progress=False)
    assert not same(small, whole) and abs(small.metrics["miou"] - whole.metrics["miou"]) < 0.2
    assert sum(row["pixels"] for row in small.table) == sum(row["pixels"] for row in whole.table)


def test_views_are_averaged():
    """A network without context that sees positions: its mirror image is not its output mirrored."""
    torch.manual_seed(0)
    position = torch.arange(8.0)

    def outputs_of(images):
        cells = F.avg_pool2d(images.float(), 8) + torch.arange(images.shape[3] // 8)
        return torch.cat([cells, cells[:, :1] ** 0], dim=1)

    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    plain = outputs_of(images)
    both = averaged_outputs(outputs_of, scales=(1.0,), flip=True, unit_vectors=False)(images)
    expected = plain.clone()
    expected[:, :3] += (position.flip(0) - position) / 2
    torch.testing.assert_close(both, expected)
    units = averaged_outputs(outputs_of, scales=(1.0,), flip=True, unit_vectors=True)(images)
    mirrored = F.normalize(outputs_of(images.flip(3)), dim=1).flip(3)
    torch.testing.assert_close(units, (F.normalize(plain, dim=1) + mirrored) / 2)
    flat = torch.full((1, 3, 64, 96), 7, dtype=torch.uint8)
    scaled = averaged_outputs(lambda x: F.avg_pool2d(x.float(), 8), scales=(0.5, 2.0), flip=False, unit_vectors=False)(
        flat
    )
    assert scaled.shape == (1, 3, 16, 24) and torch.allclose(scaled, torch.tensor(7.0))
    same_function = averaged_outputs(outputs_of, scales=(1.0,), flip=False, unit_vectors=True)
    assert same_function is outputs_of


def test_enlarged_views_keep_their_detail():
    """A network that averages 8 x 8 pixels sees stripes of 8 pixels, which begin in the middle of a cell, only when enlarged."""
    stripes = torch.arange(64).add(4).div(8, rounding_mode="floor").remainder(2).mul(200).to(torch.uint8)
    images = stripes.expand(1, 3, 64, 64)

    def outputs_of(images):
        return F.avg_pool2d(images.float(), 8)

    assert outputs_of(images).std() == 0
    for scales, cells in (((1.0, 0.5), 8), ((1.0, 1.5), 16), ((2.0,), 16), ((1.0, 3.0), 32), ((8.0,), 64)):
        seen = averaged_outputs(outputs_of, scales=scales, flip=False, unit_vectors=False)(images)
        assert seen.shape == (1, 3, cells, cells)
        assert (seen.std() > 20) == (cells > 8)
    finest = averaged_outputs(lambda images: images.float(), scales=(1.0, 2.0), flip=False, unit_vectors=False)(images)
    assert finest.shape == images.shape, "never finer than the pixels"


def test_views_that_cannot_be_are_refused(model, squares):
    for wrong, message in (({"scales": (0.0,)}, "scales = "), ({"overlap": 32}, "overlap = 32 without a tile")):
        with pytest.raises(ValueError, match=message):
            Views(**wrong)
    with pytest.raises(ValueError, match="tile = 40, overlap = 0: expected multiples of 32"):
        Views(tile=40)
    with pytest.raises(ValueError, match="workers = 0: expected at least 1"):
        kiloseg.evaluate(model, squares, workers=0, progress=False)


# Changed classes


def test_changed_classes_are_matched_by_name(trained, squares, whole):
    content = content_of(str(trained.checkpoint))
    renamed = kiloseg.evaluate(model_of(editing.rename(content, "square 2", "two"), "renamed"), squares, progress=False)
    assert renamed.metrics["miou"] == whole.metrics["miou"] and renamed.table[2]["name"] == "two"

    pixels = {row["name"]: row["pixels"] for row in whole.table}
    merged = kiloseg.evaluate(
        model_of(editing.merge(content, "square 1", ["square 4"]), "merged"), squares, progress=False
    )
    assert [row["name"] for row in merged.table] == [*NAMES[:4], NAMES[5]] and merged.metrics["absent"] == []
    assert merged.table[1]["pixels"] == pixels["square 1"] + pixels["square 4"]

    removed = kiloseg.evaluate(model_of(editing.remove(content, ["square 3"]), "removed"), squares, progress=False)
    assert sum(row["pixels"] for row in removed.table) == sum(pixels.values()) - pixels["square 3"]
    assert removed.metrics["absent"] == ["square 3"] and 0 <= removed.metrics["absent_auroc"] <= 1

    image = np.zeros((64, 64, 3), dtype=np.uint8)
    more = editing.add(content, {"disc": [(image, np.ones((64, 64), dtype=np.uint8))]})
    added = kiloseg.evaluate(model_of(more, "added"), squares, progress=False)
    assert len(added.table) == 7 and added.table[6]["iou"] is None and added.table[6]["pixels"] == 0
    assert added.metrics["miou"] == pytest.approx(np.mean([row["iou"] for row in added.table[:6]]))


def test_classes_that_a_data_set_lacks_are_named(trained, squares, tmp_path):
    info = json.loads((squares / "dataset.json").read_text())
    for path in squares.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "dataset.json").unlink()
    info["classes"][2] = "circle"
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    content = content_of(str(trained.checkpoint))
    with pytest.raises(ValueError, match="has classes that the model neither has nor lost: 'circle'"):
        kiloseg.evaluate(model_of(editing.rename(content, "square 1", "one"), "x"), tmp_path, progress=False)
    both = kiloseg.evaluate(model_of(content, "x"), tmp_path, by_name=True, progress=False)
    assert both.metrics["absent"] == ["circle"] and both.table[2]["iou"] is None
    (tmp_path / "dataset.json").write_text(json.dumps(info | {"classes": [f"other {n}" for n in range(6)]}))
    with pytest.raises(
        ValueError, match=r"no class name in common; the data set has 'other 0'.*the model 'background'"
    ):
        kiloseg.evaluate(model_of(content, "x"), tmp_path, by_name=True, progress=False)


# Counters


def test_counts_of_groups_and_of_the_first_five(model):
    classes = dataclasses.replace(model.classes, groups=[[], ["a", "x"], ["a", "x"], ["a", "y"], ["b"], ["b"]])
    levels = levels_of(classes)
    assert [level.names for level in levels] == [["background", "a", "b"], ["background", "x", "y", "b"]]
    labels = torch.tensor([[[0, 1, 1, 3, 4, -1, -2]]])
    best = torch.tensor([[[0, 2, 1, 1, 1, 0, 0]]])
    second = torch.tensor([[[1, 1, 2, 3, 5, 1, 1]]])
    logits = torch.tensor([2.0, 1.0])[:, None, None, None].expand(2, 1, 1, 7)
    counts = Counts(6, levels)
    counts.update(Candidates(torch.stack([best, second]), logits, torch.linspace(0, 0.6, 7)[None, None]), labels)
    assert counts.in_first.tolist() == [4, 5]
    assert counts.iou.counts_3C.tolist()[0] == [1, 1, 0, 0, 0, 0]
    assert counts.of_groups[0].compute()["iou_per_class"].tolist() == [1, 3 / 4, 0]
    assert counts.of_groups[1].compute()["iou_per_class"].tolist()[:3] == [1, 1 / 2, 0]
    assert counts.known.counts_b.sum() == 5 and counts.absent.counts_b.sum() == 1
    assert auroc(counts.absent, counts.known) == 1
    twice = Counts(6, levels)
    twice.merge(counts.state())
    twice.merge(counts.state())
    assert all(np.array_equal(2 * one, two) for one, two in zip(counts.state()[:8], twice.state()[:8], strict=True))


def test_auroc_is_that_of_sorted_scores():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    higher, lower = torch.randn(5000, generator=generator) * 0.2 + 0.2, torch.randn(3000, generator=generator) * 0.2
    histograms = Histogram(-1, 1), Histogram(-1, 1)
    for histogram, scores in zip(histograms, (higher, lower), strict=True):
        for part in scores.split(700):
            histogram.update(part)
        histogram.update(torch.tensor([torch.nan]))
    expected = roc_auc_score([1] * 5000 + [0] * 3000, torch.cat([higher, lower]).clamp(-1, 1))
    assert auroc(*histograms) == pytest.approx(expected, abs=1e-4)
    assert histograms[0].quantile(0.05) == pytest.approx(higher.quantile(0.05).item(), abs=1e-3)
    assert np.isnan(Histogram(-1, 1).quantile(0.5)) and np.isnan(auroc(histograms[0], Histogram(-1, 1)))


# Files


def test_an_evaluation_is_logged_to_the_run_of_its_model(trained, squares, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker.open("train", tmp_path / "runs")
    run = tracker.study_run("first", {}, {})
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(trained.checkpoint, folder)
    (folder / "mlflow_run_id").write_text(run.run_id + "\n")
    words = ["evaluate", str(folder), "--data", str(squares), "--samples", "2", "--runs", str(tmp_path / "runs")]
    cli.main([*words, "--out", str(tmp_path / "out")])
    assert f"logged to run {run.run_id}" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    logged = tracker.client.get_run(run.run_id).data.metrics
    assert (
        logged["evaluation/miou"] == metrics["miou"] and logged["evaluation/top5_accuracy"] == metrics["top5_accuracy"]
    )
    names = {Path(item.path).name for item in tracker.client.list_artifacts(run.run_id, "evaluation")}
    assert {"report.html", "classes.csv", "classes.parquet", "metrics.json", "figures"} == names
    cli.main([*words, "--no-log", "--out", str(tmp_path / "again")])
    assert "logged to run" not in capsys.readouterr().out


@pytest.mark.timeout(300)
@needs_browser
def test_the_report_sorts_and_searches_in_a_browser(whole, tmp_path):
    evil = "</script><script>document.title = 'taken over'</script>"
    table = [row | {"name": evil if row["id"] == 3 else row["name"]} for row in whole.table]
    dataclasses.replace(whole, table=table).save(tmp_path)
    with shown(tmp_path / "report.html") as page:
        assert page.title() == "kiloseg evaluation"
        assert f"{whole.metrics['miou']:.4f}" in page.locator("#numbers").inner_text()
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 100)")
        assert page.locator("#figures img").count() == 4
        rows = page.locator("#classes tbody tr")
        assert rows.count() == 6
        page.locator("#classes th", has_text="pixels").first.click()
        most = max(whole.table, key=lambda row: row["pixels"])
        assert rows.first.locator("td").nth(1).inner_text() == most["name"]
        page.locator("#classes input").fill("SQUARE 5")
        assert rows.count() == 1 and "square 5" in rows.first.inner_text()
        page.locator("#classes input").fill("script>")
        assert evil in rows.first.inner_text()
