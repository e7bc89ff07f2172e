"""The commands of the tutorial's quick start, as they stand on the page, on a small folder of one's own."""

import base64
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
PORT = "5001"


def quick_start():
    """The commands of the section, in words."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1]
    assert section.startswith("Quick start")
    return [shlex.split(line) for line in re.findall(r"^    (\S.*)$", section, re.MULTILINE)]


def lay_out(folder, count=14):
    """Photographs of squares on noise with their masks, as section 2 of the tutorial describes them."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.csv").write_text("id,name\n0,background\n1,apple\n300,leaf\n")
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(90, 130, (112, 128, 3)).astype(np.uint8)
        mask = np.zeros((112, 128), dtype=np.uint16)
        for class_id, color in ((1, (220, 30, 30)), (300, (30, 200, 60))):
            top, left = generator.integers(0, 64, 2)
            pixels[top : top + 40, left : left + 40] = color
            mask[top : top + 40, left : left + 40] = class_id
        Image.fromarray(pixels).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")


def test_the_front_page_shows_three_of_the_six_commands():
    assert len(quick_start()) == 6
    lines = set(re.findall(r"^    (\S.*)$", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert sum(shlex.join(words) in lines for words in quick_start()) == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_six_commands_lead_from_a_folder_to_a_server(tmp_path):
    lay_out(tmp_path / "mine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    programs = str(Path(sys.executable).parent)
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'platform'}:{ROOT / 'datasets'}",
    }
    *commands, serve = quick_start()
    for words in commands:
        # The commands are given in the checkout, whose scripts are named by their paths there.
        words = [str(ROOT / word) if word.startswith("datasets/") else word for word in words]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    assert (
        len(list((tmp_path / "predicted").glob("*.overlay.png")))
        == len(list((tmp_path / "predicted").glob("*.html")))
        == 14
    )
    metrics = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    assert metrics["miou"] > 0.5 and (tmp_path / "evaluated" / "report.html").exists()
    words = [port if word == PORT else word for word in serve]
    assert port in words
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        labels = answered(f"http://127.0.0.1:{port}", tmp_path, server)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    with Image.open(tmp_path / "predicted" / "000.labels.png") as expected:
        assert np.array_equal(labels, np.asarray(expected)) and len(np.unique(labels)) == 3


def answered(address, folder, server):
    """The label map that the server gives for the first image."""
    deadline = time.monotonic() + 600
    while True:
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=10):
                break
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(1)
    image = base64.b64encode((folder / "mine" / "images" / "000.png").read_bytes()).decode()
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image]]}}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        found = json.load(answer)["predictions"][0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found["labels"]))))
