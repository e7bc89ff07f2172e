"""A study in MLflow's own UI, in a real browser."""

import runpy
import shutil
from pathlib import Path

import pytest

from kiloseg.tracking import CURVE_TAG, Tracker

PICTURES = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "take_pictures.py"))
CLASSES = (16, 64, 256, 1024)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two curves as experiments/scale_classes.py writes them."""
    folder = tmp_path_factory.mktemp("runs")
    study = Tracker.open("scale_classes", folder).study_run("scale_classes-1", {}, {"setting": "budget"})
    for head, share in (("dense", 0.2), ("embedding:all", 0.6)):
        curve = study.tracker.trial_run(study, head, {}, {CURVE_TAG: head, "setting": "budget", "head": head})
        for count in CLASSES:
            metrics = {"miou_vs_classes": share / count**0.1, "peak_memory_gib_vs_classes": share * count**0.5}
            curve.log_metrics(metrics, step=count)
        curve.end("FINISHED")
    study.end("FINISHED")
    return folder


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    not any(map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), reason="no Chromium on PATH"
)
def test_both_curves_are_drawn(runs):
    experiment, ids = PICTURES["curve_runs"](runs, "scale_classes")
    assert set(ids) == {"dense", "embedding:all"}
    with PICTURES["server"](runs, runs / "ui.log") as address, PICTURES["browser_page"](None) as page:
        for metric in ("miou_vs_classes", "peak_memory_gib_vs_classes"):
            where = PICTURES["metric_address"](address, experiment, list(ids.values()), metric)
            PICTURES["show"](page, where, metric)
            # Of Plotly's chart: a line for each head, named in its legend, with a point for each class count.
            page.locator(".legendtext").nth(1).wait_for(timeout=60_000)
            names = " ".join(page.locator(".legendtext").all_inner_texts())
            assert "dense" in names and "embedding:all" in names
            assert page.locator(".scatterlayer .trace").count() == 2
            assert page.locator(".scatterlayer .points path").count() == 2 * len(CLASSES)
