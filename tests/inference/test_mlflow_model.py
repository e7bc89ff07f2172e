"""A trained model in MLflow: loaded in another process, served by MLflow's own server, and registered under a name."""

import base64
import contextlib
import io
import json
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import mlflow.models
import numpy as np
import pytest
import torch
from browser import needs_browser
from mlflow.models.cli import commands as mlflow_models
from PIL import Image

import kiloseg
from kiloseg import cli
from kiloseg.config import Config, Data, Model
from kiloseg.inference.registration import REQUIREMENTS, requirements
from kiloseg.models import Segmenter
from kiloseg.overrides import flatten
from kiloseg.tracking.model_names import split_name
from kiloseg.tracking.runs import TrackedRun, Tracker
from kiloseg.training.checkpoint import save_checkpoint
from kiloseg.training.initial import initial_state
from kiloseg.tuning.paths import absolute
from kiloseg.tuning.registering import register_checkpoint

ROOT = Path(__file__).parents[2]
NAMES = ["background", "cup", "chair", "lamp", "plänt"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photo():
    """The content of a PNG."""
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(small).resize((98, 75), Image.Resampling.NEAREST).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory, photo):
    """A checkpoint of an untrained model whose classes are nearest to different parts of the photo."""
    torch.manual_seed(0)
    config = Config(model=Model(arch="fpn", backbone="test_resnet", embed_dim=6))
    classes = {
        "ids": [0, 3, 4, 8, 9], "names": NAMES, "background": 0, "train_samples": [9, 5, 4, 3, 2], "data": "room", "digest": "x",
    }  # fmt: skip
    segmenter = Segmenter(config.model, 5).eval()
    pixels = np.asarray(Image.open(io.BytesIO(photo)))
    with torch.no_grad():
        outputs_Dhw = segmenter(torch.from_numpy(pixels[:64, :96].transpose(2, 0, 1).copy())[None])[0]
        segmenter.head.table.rows_CD.copy_(outputs_Dhw[:, [1, 4, 8, 11, 14], [2, 21, 5, 12, 17]].T)
    content = {
        "config": flatten(config), "num_classes": 5, "classes": classes, "model": segmenter.state_dict(),
        "report": {"val/miou": 0.4321, "peak_memory_gib": 1.25, "peak_memory_kind": "cpu_live_tensors", "step": 7},
    }  # fmt: skip
    return str(save_checkpoint(tmp_path_factory.mktemp("model"), 7, content, keep=1))


@pytest.fixture(scope="module")
def exported(source, tmp_path_factory):
    """Folder of an MLflow model, and what its export said."""
    out = tmp_path_factory.mktemp("mlflow") / "my model"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        cli.main(["export", source, "--format", "mlflow", "--out", str(out)])
    return out, said.getvalue()


@pytest.fixture(scope="module")
def served(exported):
    """Folder of an MLflow model."""
    return exported[0]


@pytest.fixture(scope="module")
def serving(exported):
    """The command by which the export says that the model is served."""
    out, said = exported
    _, found, command = said.strip().partition(f"{out}: serve it with ")
    assert found
    return command


@pytest.fixture(scope="module")
def expected(source, photo):
    """Ids of the classes in the photo."""
    result = kiloseg.load(source, device="cpu")(Image.open(io.BytesIO(photo)))
    assert len(result.names) > 1
    return result.class_ids


def alone():
    """Environment of a process that does not find this checkout by its path, but the programs of this environment."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_a_fresh_process_loads_the_model_and_its_code(served, photo, expected, tmp_path):
    (tmp_path / "photo.png").write_bytes(photo)
    script = f"""
import io, json, pathlib
import mlflow.pyfunc, numpy, pandas
from PIL import Image
model = mlflow.pyfunc.load_model({str(served)!r})
photo = pathlib.Path("photo.png").read_bytes()
answer = model.predict(pandas.DataFrame({{"image": [photo, photo]}}))
labels = numpy.asarray(Image.open(io.BytesIO(answer["labels"][1])))
import kiloseg
numpy.save("labels.npy", labels)
print(json.dumps([kiloseg.__file__, str(labels.dtype), json.loads(answer["regions"][0])["regions"][0]["name"]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=alone(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    place, kind, name = json.loads(done.stdout.splitlines()[0])
    assert Path(place).is_relative_to(served), "the code that came with the model is used"
    assert kind == "uint16" and name in NAMES
    assert np.array_equal(np.load(tmp_path / "labels.npy"), expected)


def test_the_command_that_serves_is_one_of_mlflow(serving, served):
    program, *words = shlex.split(serving)
    assert Path(program).is_file() and os.access(program, os.X_OK)
    assert words[:2] == ["models", "serve"]
    given = mlflow_models.commands["serve"].make_context("serve", words[2:]).params  # refuses what MLflow does not know
    assert (given["env_manager"], given["host"]) == ("local", "127.0.0.1")
    assert mlflow.models.get_model_info(given["model_uri"]).signature is not None and given["model_uri"] == str(served)


@pytest.fixture(scope="module")
def server(serving, tmp_path_factory):
    """Address of MLflow's own server of the model, started as its export says but on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*shlex.split(serving), "--port", str(port), "--workers", "1"],
            env=alone(), cwd=log.parent, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 540
        while True:
            try:
                with urllib.request.urlopen(f"{address}/ping", timeout=10):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def ask(server, *images):
    body = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(image).decode()] for image in images]}}
    request = urllib.request.Request(
        f"{server}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["predictions"]


def test_a_server_answers_with_label_maps(server, photo, expected):
    first, second = ask(server, photo, photo)
    labels = np.asarray(Image.open(io.BytesIO(base64.b64decode(first["labels"]))))
    assert np.array_equal(labels, expected) and first == second
    regions = json.loads(first["regions"])
    assert (regions["height"], regions["width"]) == (75, 98) and {
        region["name"] for region in regions["regions"]
    } <= set(NAMES)


def test_a_server_names_what_is_no_image(server, photo):
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask(server, photo, b"no image")
    with refused.value as answer:
        assert answer.code in (400, 500)
        assert "image 1 of the request cannot be read as an image" in answer.read().decode()
    assert len(ask(server, photo)) == 1, "the server goes on"


def test_signature_example_requirements_and_figures(served):
    info = mlflow.models.get_model_info(str(served))
    assert info.signature.inputs.to_dict() == [{"type": "binary", "name": "image", "required": True}]
    assert [column["name"] for column in info.signature.outputs.to_dict()] == ["labels", "regions"]
    assert (info.metadata["miou"], info.metadata["classes"], info.metadata["peak_memory_gib"]) == (0.4321, 5, 1.25)
    assert (served / "input_example.json").is_file()
    stated = (served / "requirements.txt").read_text().split()
    assert any(line.startswith("mlflow==") for line in stated) and set(requirements()) <= set(stated)
    assert f"torch=={torch.__version__.partition('+')[0]}" in stated
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert set(REQUIREMENTS) == needed | {"pandas"}
    assert not list(served.rglob("*.pkl"))


def test_registered_under_an_alias_that_moves(source, photo, expected, tmp_path, capsys):
    runs = tmp_path / "runs"
    words = ["export", source, "--format", "mlflow", "--register", "objects@shop", "--runs", str(runs)]
    cli.main(words)
    assert capsys.readouterr().out.startswith("models:/objects@shop: version 1, in MLflow at sqlite:///")
    client = Tracker.open("objects", runs).client
    version = client.get_model_version_by_alias("objects", "shop")
    assert "5 classes of data set room, after 7 steps" in version.description
    assert "mIoU **0.4321**" in version.description and "**1.250 GiB** (cpu_live_tensors)" in version.description
    assert (version.tags["miou"], version.tags["classes"], version.tags["peak_memory_gib"]) == ("0.4321", "5", "1.25")
    for name in ("models:/objects@shop", "models:/objects/1"):
        model = kiloseg.load(name, runs=runs, device="cpu")
        assert model.classes.names == NAMES
        assert np.array_equal(model(Image.open(io.BytesIO(photo))).class_ids, expected)
    cli.main(
        ["classes", "models:/objects@shop", "rename", "cup", "mug", "--out", str(tmp_path / "mug"), "--runs", str(runs)]
    )
    run = Tracker.open("study", runs).study_run("first", {}, {})
    assert register_checkpoint(tmp_path / "mug", run, "objects@shop") == "registered: models:/objects@shop, version 2\n"
    assert kiloseg.load("models:/objects@shop", runs=runs).classes.names[1] == "mug"
    assert kiloseg.load("models:/objects/1", runs=runs).classes.names[1] == "cup"
    for name in ("cup", "mug"):  # fine-tuning starts from it too, and it has one place however often it is named
        config = Config(data=Data(path="data"), model=Model(weights=f"models:/objects/{1 + (name == 'mug')}"))
        places = {absolute(config, runs).model.weights for _ in range(2)}
        assert len(places) == 1 and initial_state(places.pop())["classes"]["names"][1] == name
    for name, message in {
        "models:/objects@other": "models:/objects@other is not registered",
        "models:/nothing/1": "models:/nothing/1 is not registered",
        "models:/objects": "models:/objects: expected models:/NAME@ALIAS or models:/NAME/VERSION",
    }.items():
        with pytest.raises(ValueError, match=message):
            kiloseg.load(name, runs=runs)
    with pytest.raises(ValueError, match=r"models:/objects/1: no such file or folder, and no runs are recorded in"):
        kiloseg.load("models:/objects/1", runs=tmp_path / "none")


@pytest.mark.timeout(300)
@needs_browser
def test_the_registry_page_shows_what_a_version_is_worth(source, tmp_path):
    pictures = runpy.run_path(str(ROOT / "docs" / "take_pictures.py"))
    runs = tmp_path / "runs"
    cli.main(["export", source, "--format", "mlflow", "--register", "objects@shop", "--runs", str(runs)])
    with pictures["server"](runs, tmp_path / "ui.log") as address, pictures["browser_page"](None) as page:
        pictures["show"](
            page, f"{address}/#/models/objects/versions/1", "5 classes of data set room", "0.4321", "1.250 GiB"
        )


def test_a_registry_that_cannot_be_reached(source, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(SystemExit, match=rf"MLflow at {address} does not answer"):
        cli.main(["export", source, "--format", "mlflow", "--register", "objects"])
    with pytest.raises(ConnectionError, match=r"MLflow's registry could not be asked for models:/objects@best"):
        kiloseg.load("models:/objects@best")
    away = TrackedRun(tracker=Tracker(uri=address, experiment_id="1"), run_id="f" * 32)
    assert register_checkpoint(source, away, "objects") == ""
    assert "the model could not be registered as objects in MLflow at" in caplog.text
    command = caplog.text.strip().splitlines()[-1]
    words = shlex.split(command)
    assert words[0] == f"MLFLOW_TRACKING_URI={address}" and Path(words[1]).name == "kiloseg"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")  # it answers again
    cli.main(words[2:])
    assert kiloseg.load("models:/objects@best", device="cpu").classes.names == NAMES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "mlflow"], "--out and --register are missing"),
        (["--format", "folder", "--register", "x"], "--register x with --format folder: expected --format mlflow"),
        (["--format", "folder"], "--out is missing"),
        (["--format", "mlflow", "--register", "a/b"], "--register 'a/b': expected NAME or NAME@ALIAS"),
        (["--format", "mlflow", "--register", "a@latest"], "MLflow keeps the alias 'latest' for itself"),
        (["--format", "mlflow", "--out", "s3://bucket/x?y=z"], r"--out s3://bucket/x: expected a path of this machine"),
        (["--format", "mlflow", "--out", "."], r"--out \. exists; give another folder"),
    ],
)
def test_what_cannot_be_registered_is_refused(words, message, source):
    with pytest.raises(SystemExit, match=message):
        cli.main(["export", source, *words])


def test_names_and_aliases():
    assert split_name("mine") == ("mine", "best") and split_name("mine@shop") == ("mine", "shop")
    for wrong in ("", "@x", "x@", "x@a@b", "x@v1"):
        with pytest.raises(ValueError, match="--register"):
            split_name(wrong)
