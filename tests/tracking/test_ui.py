"""A study in MLflow's own UI, in a real browser."""

import runpy
import shutil
from pathlib import Path

import pytest

from kiloseg.tracking.delivery import Delivery
from kiloseg.tracking.runs import CURVE_TAG, Tracker

PICTURES = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "take_pictures.py"))
CLASSES = (16, 64, 256, 1024)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two curves as experiments/scale_classes.py writes them."""
    folder = tmp_path_factory.mktemp("runs")
    study = Tracker.open("scale_classes", folder).study_run("scale_classes-1", {}, {"setting": "budget"})
    delivery = Delivery(folder, study)
    for head, share in (("dense", 0.2), ("embedding:all", 0.6)):
        curve = delivery.trial(head)
        curve.begin({}, {CURVE_TAG: head, "setting": "budget", "head": head})
        for count in CLASSES:
            metrics = {"miou_vs_classes": share / count**0.1, "peak_memory_gib_vs_classes": share * count**0.5}
            curve.log_metrics(metrics, step=count)
        curve.end("FINISHED")
    delivery.study.end("FINISHED")
    delivery.close()
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
            # The legend names a line for each head; each line has a point for each class count.
            PICTURES["show"](page, where, *(f"{head} ({metric})" for head in ids))
            page.locator(".scatterlayer .points path").first.wait_for(timeout=60_000)
            assert page.locator(".scatterlayer .points path").count() == 2 * len(CLASSES)
