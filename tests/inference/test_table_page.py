"""The page of a class table in a real browser: points, colors, neighbors and pairs; and its numbers."""

import csv

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from browser import needs_browser, shown

from kiloseg import cli
from kiloseg.config import Config, Model
from kiloseg.inference.editing import neighbors
from kiloseg.inference.loading import content_of
from kiloseg.inference.table_page import principal_components
from kiloseg.models import Segmenter
from kiloseg.overrides import flatten
from kiloseg.tracking.runs import Tracker
from kiloseg.training.checkpoint import save_checkpoint

EVIL = "</script><script>document.title = 'taken over'</script>"


@pytest.fixture
def source(tmp_path):
    """1,000 classes in two groups; class 7, whose name is markup, and class 8 are nearly one."""
    torch.manual_seed(0)
    config = Config(model=Model(arch="fpn", backbone="test_resnet", embed_dim=6))
    model = Segmenter(config.model, 1000).state_dict()
    rows = model["head.table.rows_CD"]
    rows[8] = rows[7] + 0.001
    names = [f"thing {number}" for number in range(1000)]
    names[7] = EVIL
    classes = {
        "ids": list(range(1000)), "names": names, "background": None, "train_samples": list(range(1000)), "data": "", "digest": "",
        "groups": [["even" if number % 2 == 0 else "odd"] for number in range(1000)],
    }  # fmt: skip
    content = {"config": flatten(config), "num_classes": 1000, "classes": classes, "model": model}
    return save_checkpoint(tmp_path / "model", 7, content, keep=1)


def test_neighbors_and_components_are_those_of_dense_algebra(source):
    content = content_of(source)
    rows = F.normalize(content["model"]["head.table.rows_CD"], dim=1)
    cosine = rows @ rows.T
    cosine.fill_diagonal_(-2)
    expected = cosine.topk(3, dim=1)
    found = neighbors(content, 3)
    assert [[label for label, _ in each] for each in found] == expected.indices.tolist()
    assert found[7][0][0] == 8 and found[7][0][1] == pytest.approx(1, abs=1e-4)
    points, shares = principal_components(rows, 3)
    _, sizes, axes = np.linalg.svd((rows - rows.mean(0)).double().numpy(), full_matrices=False)
    assert shares.tolist() == pytest.approx((sizes**2 / (sizes**2).sum())[:3].tolist(), abs=1e-6)
    projected = (rows - rows.mean(0)).double().numpy() @ axes[:3].T
    ratio = points.numpy() / projected
    assert np.allclose(np.abs(ratio), np.abs(ratio).mean(), rtol=1e-3) and points.abs().max() == 1
    few, shares = principal_components(torch.randn(5, 2), 3)
    assert few.shape == (5, 3) and shares[2] == 0


@pytest.mark.timeout(300)
@needs_browser
def test_points_are_chosen_colored_and_found(source, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = Tracker.open("train", tmp_path / "runs").study_run("first", {}, {})
    (source.parent / "mlflow_run_id").write_text(run.run_id)
    (tmp_path / "evaluated").mkdir()
    with (tmp_path / "evaluated" / "classes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "iou"])
        names = content_of(source)["classes"]["names"]
        writer.writerows((name, "" if number == 3 else number / 1000) for number, name in enumerate(names))
    path = tmp_path / "classes.html"
    words = ["classes", str(source), "page", "--out", str(path), "--evaluation", str(tmp_path / "evaluated")]
    cli.main([*words, "--runs", str(tmp_path / "runs")])
    assert f"logged to run {run.run_id}" in capsys.readouterr().out
    assert [item.path for item in run.tracker.client.list_artifacts(run.run_id, "classes")] == ["classes/classes.html"]
    with shown(path) as page:
        assert page.title() == "kiloseg classes"
        assert page.locator("#color option").all_inner_texts() == [
            "group, level 1 (2)",
            "IoU",
            "training samples",
            "one color",
        ]
        assert page.locator("#legend span").all_inner_texts() == ["even", "odd"]
        pair = page.locator("#pairs li").first
        assert EVIL in pair.inner_text() and "thing 8" in pair.inner_text() and "1.000" in pair.inner_text()
        pair.locator("button", has_text="thing 8").click()
        assert page.locator("#chosen h2").inner_text() == "thing 8"
        assert "id 8, 8 training samples, IoU 0.0080, even" in page.locator("#chosen").inner_text()
        assert page.locator("#chosen li").count() == 8 and EVIL in page.locator("#chosen li").first.inner_text()
        page.locator("#search").fill("thing 3")
        assert "no IoU" in page.locator("#chosen").inner_text()
        # A click at the place where a point is drawn chooses it, and the pointer names it.
        x, y = page.evaluate("(() => { const r = devicePixelRatio || 1; return place(500).map(v => v / r); })()")
        box = page.locator("#points").bounding_box()
        page.mouse.move(box["x"] + x, box["y"] + y)
        near = page.locator("#tip").inner_text()
        page.mouse.click(box["x"] + x, box["y"] + y)
        assert page.locator("#chosen h2").inner_text() == near
        colors = set()
        for color in ("group 0", "iou", "none"):
            page.locator("#color").select_option(color)
            script = (
                "(([x, y]) => Array.from(context.getImageData(Math.round(x), Math.round(y), 1, 1).data))(place(500))"
            )
            colors.add(tuple(page.evaluate(script)))
        assert len(colors) == 3 and all(color[3] == 255 for color in colors)


def test_pages_that_cannot_be_are_refused(source, tmp_path):
    path = tmp_path / "classes.html"
    path.write_text("mine")
    words = ["classes", str(source), "page"]
    (tmp_path / "classes.csv").write_text("name,iou\nsofa,0.5\n")
    for more, message in (
        (["--out", str(path)], "classes.html exists; give --overwrite"),
        (["--out", str(tmp_path / "page.pdf")], "expected the name of a file that ends in .html"),
        ([], "--out is missing"),
        (["--out", str(path), "--overwrite", "--evaluation", str(tmp_path)], r"other classes \(it has 'sofa'\)"),
        (
            ["--out", str(path), "--overwrite", "--evaluation", str(tmp_path / "gone")],
            "gone/classes.csv cannot be read",
        ),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main([*words, *more])
    assert path.read_text() == "mine"
