"""The pictures of docs/how-to/compare.md, taken of MLflow's own UI by a headless browser.

    python docs/take_pictures.py --runs runs --experiment scale_classes

Needs a study of experiments/scale_classes.py in `--runs`, playwright (`pip install '.[ui]'`) and Chromium (Debian: `apt install
chromium`; any other by --browser). The server listens on loopback and ends with the script.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from mlflow import MlflowClient
from playwright.sync_api import Page, sync_playwright

from kiloseg.tracking.runs import CURVE_TAG

METRICS = ("miou_vs_classes", "peak_memory_gib_vs_classes", "images_per_s_vs_classes")
SIZE = {"width": 1500, "height": 900}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Take the pictures."""

    runs: Path = Path("runs")
    """Folder with mlflow.db."""
    experiment: str = "scale_classes"
    out: Path = Path(__file__).parent / "pictures"
    """Folder for the pictures."""
    browser: str | None = None
    """Chromium's program. None: the one on PATH."""


@contextlib.contextmanager
def server(runs: Path, log: Path) -> Iterator[str]:
    """The UI on the database of `runs`, on a free port of loopback; gives its address.

    Raises:
        RuntimeError: it does not answer within two minutes; the message has the end of `log`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        f"sqlite:///{(runs / 'mlflow.db').resolve()}",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | quiet, start_new_session=True
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.3)
    raise RuntimeError(f"MLflow's UI does not answer at {address}; the end of {log}:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def browser_page(browser: str | None) -> Iterator[Page]:
    """A page of a headless Chromium.

    Raises:
        FileNotFoundError: there is none.
    """
    program = browser or shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if program is None:
        raise FileNotFoundError(
            "no Chromium on PATH; install it (Debian: apt install chromium) or name it by --browser"
        )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            page = chromium.new_page(viewport=SIZE, device_scale_factor=1)
            page.set_default_timeout(120_000)  # 30 s, the default, have passed before a busy machine had opened MLflow
            yield page
        finally:
            chromium.close()


def curve_runs(runs: Path, experiment: str) -> tuple[str, dict[str, str]]:
    """The experiment's id and the newest study's curves: run ids by name of the head."""
    client = MlflowClient(f"sqlite:///{(runs / 'mlflow.db').resolve()}")
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise ValueError(f"{runs} has no experiment {experiment!r}; run experiments/scale_classes.py first")
    curves = client.search_runs([found.experiment_id], f"tags.`{CURVE_TAG}` LIKE '%'", order_by=["start_time DESC"])
    if not curves:
        raise ValueError(
            f"experiment {experiment!r} of {runs} has no finished study; let experiments/scale_classes.py end"
        )
    newest = curves[0].data.tags["mlflow.parentRunId"]
    ids = {run.data.tags["head"]: run.info.run_id for run in curves if run.data.tags["mlflow.parentRunId"] == newest}
    return found.experiment_id, ids


def metric_address(address: str, experiment_id: str, run_ids: list[str], metric: str) -> str:
    """The UI's page of one metric of several runs, drawn against their steps, which are class counts."""
    asked = {
        "runs": json.dumps(run_ids),
        "experiments": json.dumps([experiment_id]),
        "metric": json.dumps(metric),
        "plot_metric_keys": json.dumps([metric]),
        "x_axis": "step",
        "y_axis_scale": "linear" if metric.startswith("miou") else "log",
        "line_smoothness": "1",
        "show_point": "true",
    }
    return f"{address}/#/metric?{urllib.parse.urlencode(asked)}"


def runs_address(address: str, experiment_id: str, condition: str) -> str:
    """The UI's table of the runs that a condition leaves."""
    return f"{address}/#/experiments/{experiment_id}/runs?{urllib.parse.urlencode({'searchFilter': condition})}"


def show(page: Page, where: str, *texts: str) -> None:
    """Opens an address and waits until all of `texts` can be read on the page."""
    page.goto("about:blank")
    page.goto(where)
    for text in texts:
        page.get_by_text(text).first.wait_for(timeout=60_000)


def main(arguments: Arguments) -> None:
    """Takes a picture of the table of runs and of each curve."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    experiment_id, ids = curve_runs(arguments.runs, arguments.experiment)
    log = arguments.runs / "mlflow-ui.log"
    with server(arguments.runs, log) as address, browser_page(arguments.browser) as page:
        show(page, runs_address(address, experiment_id, f"tags.`{CURVE_TAG}` != ''"), arguments.experiment)
        page.get_by_label("Close", exact=True).click()  # the assistant
        page.wait_for_timeout(2000)
        page.screenshot(path=arguments.out / "runs.png")
        for metric in METRICS:
            legend = [f"{head} ({metric})" for head in ids]
            show(page, metric_address(address, experiment_id, list(ids.values()), metric), *legend)
            page.wait_for_timeout(2000)
            page.screenshot(path=arguments.out / f"{metric}.png")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
