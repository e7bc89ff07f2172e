"""A trained model by its source: names, predictions on images of any kind, files that show them, and figures."""

import dataclasses
import http.server
import json
import shutil
import socket
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import kiloseg
from kiloseg import cli
from kiloseg.inference.batches import predict_many
from kiloseg.inference.images import as_pixels
from kiloseg.inference.inputs import find_images
from kiloseg.inference.result import run_lengths
from kiloseg.inference.tiling import predict_tiled
from kiloseg.metrics import BoundaryIoU, CalibrationError, ConfusedPairs
from kiloseg.models import nearest_class
from kiloseg.models.heads import Prediction
from kiloseg.tracking.runs import Tracker
from kiloseg.training.checkpoint import load_checkpoint, save_checkpoint

NAMES = ["background", *(f"square {number}" for number in range(1, 6))]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def report(trained):
    return trained


@pytest.fixture(scope="module")
def model(report):
    return kiloseg.load(report.checkpoint, device="cpu")


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    path = tmp_path / "photos" / "a photo.png"
    path.parent.mkdir()
    Image.fromarray(pixels).resize((210, 150)).save(path)
    return path


# Loading


def test_names_and_frequencies_travel_with_the_checkpoint(report, model, squares, tmp_path):
    assert model.classes.names == NAMES and model.classes.background == 0 and model.classes.data == "squares"
    assert model.classes.ids.tolist() == list(range(6)) and model.classes.train_samples[0] == 42
    state = load_checkpoint(report.checkpoint)
    state["config"]["data.path"] = str(tmp_path / "gone")
    moved = save_checkpoint(tmp_path, 1, state, keep=1)
    assert kiloseg.load(tmp_path).classes.names == NAMES, "a folder stands for its newest checkpoint"
    assert kiloseg.load(moved).classes.digest == model.classes.digest


def test_a_checkpoint_that_names_no_classes_asks_its_data_set(report, tmp_path):
    state = load_checkpoint(report.checkpoint)
    del state["classes"]
    assert kiloseg.load(save_checkpoint(tmp_path, 1, state, keep=2)).classes.names == NAMES
    state["config"]["data.path"] = str(tmp_path / "gone")
    path = save_checkpoint(tmp_path, 2, state, keep=2)
    with pytest.warns(UserWarning, match=r"step-00000002.pt does not name its classes.*gone"):
        assert kiloseg.load(path).classes.names == [f"class {number}" for number in range(6)]


def test_a_run_in_mlflow_and_a_study_by_its_name(report, tmp_path):
    tracker = Tracker.open("my-study", tmp_path / "runs")
    run = tracker.study_run("first", {"trainer.output": "/nowhere"}, {})
    with pytest.raises(ValueError, match=r"runs:/\w+ has no checkpoint: none was logged to it, and its trainer.output"):
        kiloseg.load(f"runs:/{run.run_id}", runs=tmp_path / "runs")
    with pytest.raises(ValueError, match="no run of study my-study has a checkpoint"):
        kiloseg.load("my-study", runs=tmp_path / "runs")
    from pathlib import Path

    run.log_file(Path(report.checkpoint), "best")
    for source in (f"runs:/{run.run_id}", "my-study"):
        assert kiloseg.load(source, runs=tmp_path / "runs").classes.names == NAMES
    with pytest.raises(ValueError, match="other-study is not a file, a folder or a study in MLflow"):
        kiloseg.load("other-study", runs=tmp_path / "runs")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone.pt", "checkpoint .*gone.pt does not exist"),
        ("gone", "gone: no such file or folder, and no runs are recorded in"),
        ("empty", "empty has no checkpoint"),
    ],
)
def test_what_is_no_model_is_named(source, message, tmp_path):
    (tmp_path / "empty").mkdir()
    where = tmp_path / source if source != "gone" else source
    with pytest.raises(ValueError, match=message):
        kiloseg.load(where, runs=tmp_path / "runs")


# Predicting


def test_a_result_is_what_validation_would_predict(model, photo):
    result = model(photo)
    pixels = np.asarray(Image.open(photo))
    padded = np.zeros((160, 224, 3), dtype=np.uint8)
    padded[:150, :210] = pixels
    expected = model.segmenter.predict(torch.from_numpy(padded).permute(2, 0, 1)[None])[0, :150, :210].numpy()
    assert np.array_equal(result.labels, expected)
    assert result.confidence.shape == (150, 210) and 0.5 <= result.confidence.min() <= result.confidence.max() <= 1
    present = np.unique(expected)
    assert set(result.names) == {NAMES[label] for label in present} and len(present) > 1
    assert [region.pixels for region in result.regions] == sorted(np.bincount(expected.ravel())[present], reverse=True)
    assert np.array_equal(model(pixels).labels, expected) and np.array_equal(model(Image.open(photo)).labels, expected)


def test_views_are_averaged_in_every_way_to_predict(report, model, photo, tmp_path):
    viewing = kiloseg.load(report.checkpoint, device="cpu", scales=(1.0, 1.5), flip=True)
    images = torch.from_numpy(as_pixels(photo)[:128, :192].copy()).permute(2, 0, 1)[None]
    outputs, plain = viewing.outputs(images), model.outputs(images)
    assert outputs.shape[2:] == (2 * plain.shape[2], 2 * plain.shape[3])
    mirrored = dataclasses.replace(viewing, scales=(1.0,)).outputs(images.flip(3)).flip(3)
    torch.testing.assert_close(mirrored, dataclasses.replace(viewing, scales=(1.0,)).outputs(images))

    expected = viewing(photo)
    assert not np.array_equal(expected.confidence, model(photo).confidence)
    tiled = viewing(photo, tile=96, overlap=32)
    assert tiled.labels.shape == expected.labels.shape and (tiled.labels == expected.labels).mean() > 0.8
    command = ["predict", str(report.checkpoint), str(photo), "--out", str(tmp_path / "out"), "--device", "cpu"]
    cli.main([*command, "--scales", "1", "1.5", "--flip"])
    with Image.open(next((tmp_path / "out").glob("*.labels.png"))) as image:
        assert np.array_equal(np.asarray(image), viewing.classes.ids[expected.labels])
    with pytest.raises(ValueError, match=r"scales = \(1\.0, 9\.0\): expected factors above 0 and at most 8"):
        kiloseg.load(report.checkpoint, scales=(1.0, 9.0))


def test_an_image_is_turned_as_its_exif_says(model, photo, tmp_path):
    turned, path = Image.open(photo), tmp_path / "turned.png"
    exif = turned.getexif()
    exif[0x0112] = 6  # a viewer turns it clockwise
    turned.save(path, exif=exif)
    result = model(path)
    assert result.labels.shape == (210, 150)
    assert np.array_equal(result.pixels, np.rot90(np.asarray(turned), -1))


@pytest.mark.parametrize("size", [(33, 47), (96, 130), (131, 96), (200, 260)])
@pytest.mark.parametrize(("tile", "overlap"), [(96, 32), (64, 0), (128, 96)])
def test_tiles_of_a_network_without_context_leave_no_trace(size, tile, overlap):
    """A cell's output depends on its own pixels alone, so the image in one piece gives what must come out."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(9, 3, generator=generator)

    def outputs_of(images):
        assert images.shape[2] <= tile and images.shape[3] <= tile
        return F.avg_pool2d(images.float() - 128, 8)

    def decide(outputs, size):
        labels = nearest_class(outputs, table, size=size)
        return Prediction(labels, labels.float() / 16)

    small = np.random.default_rng(1).integers(0, 256, (*(side // 12 + 2 for side in size), 3)).astype(np.uint8)
    image = np.asarray(Image.fromarray(small).resize(size[::-1]))
    padded = F.pad(torch.from_numpy(image.transpose(2, 0, 1).copy()), (0, -size[1] % 32, 0, -size[0] % 32))[None]
    outputs = F.avg_pool2d(padded.float() - 128, 8)
    expected = nearest_class(outputs, table, size=tuple(padded.shape[2:]))[0, : size[0], : size[1]].numpy()
    labels, confidence = predict_tiled(outputs_of, decide, image, tile=tile, overlap=overlap)
    assert len(np.unique(expected)) > 2
    # Blending of equal outputs rounds, which decides where two classes are equally near.
    assert (labels == expected).mean() > 0.999
    assert np.array_equal(confidence, (labels / 16).astype(np.float16))


def test_tiles_that_cannot_be_are_refused(model, photo):
    for tile, overlap in ((40, 0), (64, 64), (64, 20), (0, 0)):
        with pytest.raises(ValueError, match=f"tile = {tile}, overlap = {overlap}: expected multiples of 32"):
            model(photo, tile=tile, overlap=overlap)


def test_run_lengths_are_those_of_coco():
    from pycocotools import mask

    labels = np.random.default_rng(3).integers(0, 4, (13, 9)).astype(np.int32)
    for label, counts in run_lengths(labels).items():
        encoded = mask.frPyObjects({"size": [13, 9], "counts": counts}, 13, 9)
        assert np.array_equal(mask.decode(encoded), labels == label)
    assert run_lengths(np.zeros((2, 3), dtype=np.int32)) == {0: [0, 6]}


def test_files_of_a_result(model, photo, tmp_path):
    result = model(photo)
    labels, overlay, summary = result.save(tmp_path / "out")
    assert [path.name for path in (labels, overlay, summary)] == [
        "a photo.labels.png", "a photo.overlay.png", "a photo.json"
    ]  # fmt: skip
    with Image.open(labels) as stored:
        assert stored.mode == "I;16" and np.array_equal(np.asarray(stored), model.classes.ids[result.labels])
    with Image.open(overlay) as picture:
        assert picture.width >= 210 and picture.height > 150 and picture.mode == "RGB"
    content = json.loads(summary.read_text())
    assert (content["height"], content["width"], content["data"]) == (150, 210, "squares")
    assert [region["name"] for region in content["regions"]] == result.names
    assert sum(region["pixels"] for region in content["regions"]) == 150 * 210
    with pytest.raises(ValueError, match=r"a photo.labels.png exists; give overwrite=True"):
        result.save(tmp_path / "out")
    result.save(tmp_path / "out", overwrite=True)
    with pytest.raises(ValueError, match="the image was given as pixels and has no name"):
        model(result.pixels).save(tmp_path / "out")


def test_a_confidence_map_is_a_gray_image(model, photo, tmp_path):
    result = model(photo)
    kinds = [path.name.partition(".")[2] for path in result.save(tmp_path, confidence=True)]
    assert kinds == ["labels.png", "overlay.png", "confidence.png", "json"], "NAME.json comes last"
    with Image.open(tmp_path / "a photo.confidence.png") as stored:
        assert stored.mode == "L"
        assert np.abs(np.asarray(stored) / 255 - result.confidence).max() < 0.003
    without = dataclasses.replace(result, confidence=np.full_like(result.confidence, np.nan))
    assert not np.asarray(without.confidence_map()).any()


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    """A web server on loopback, its folder and its address."""
    folder = tmp_path_factory.mktemp("web")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def do_GET(self):
            if self.path == "/short.png":
                self.send_response(200)
                self.send_header("Content-Length", "5000")
                self.end_headers()
                self.wfile.write(b"only this")
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_images_come_from_web_addresses(report, model, photo, web, tmp_path, capsys, monkeypatch):
    folder, address = web
    shutil.copy(photo, folder / "a photo.png")
    assert np.array_equal(model(f"{address}/a%20photo.png?size=1").labels, model(photo).labels)
    words = ["predict", str(report.checkpoint), f"{address}/a%20photo.png?key=secret", f"{address}/gone.png?key=secret"]
    cli.main([*words, f"{address}/short.png", "--out", str(tmp_path / "out"), "--device", "cpu", "--confidence"])
    said = capsys.readouterr()
    assert "1 predicted, 2 could not be read" in said.out
    assert f"passed over: {address}/gone.png cannot be read (HTTP 404 File not found); check the address" in said.err
    assert "secret" not in said.err and "short.png broke off after 9 of 5,000 bytes" in said.err
    kinds = ("confidence.png", "json", "labels.png", "overlay.png")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"a photo.{kind}" for kind in kinds]
    monkeypatch.setattr("kiloseg.storage.web.MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"photo.png is larger than 0 MiB: expected one image"):
        model(f"{address}/a%20photo.png")


def test_a_server_that_does_not_answer_is_named():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ValueError, match=rf"http://127.0.0.1:{port}/x.png cannot be read \(.*refused"):
        as_pixels(f"http://user:word@127.0.0.1:{port}/x.png?key=1")
    with pytest.raises(ValueError, match=r"http:///x.png cannot be read"):
        as_pixels("http:///x.png")


def test_an_image_of_more_pixels_than_expected_is_passed_over(report, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    words = ["predict", str(report.checkpoint), str(photo), "--out", str(tmp_path), "--device", "cpu"]
    with pytest.raises(SystemExit):
        cli.main([*words, "--max-pixels", "1000"])
    assert "says that it has more than 1,000 pixels; if that is intended, raise --max-pixels" in capsys.readouterr().err
    cli.main([*words, "--max-pixels", "50000"])


# The commands


def test_predict_goes_on_and_passes_over_what_is_no_image(report, photo, tmp_path, capsys):
    (photo.parent / "deeper").mkdir()
    Image.new("L", (40, 30), 99).save(photo.parent / "deeper" / "gray.jpg")
    (photo.parent / "broken.jpg").write_bytes(photo.read_bytes()[:500])
    (photo.parent / "notes.txt").write_text("no image")
    words = ["predict", str(report.checkpoint), str(photo.parent), "--out", str(tmp_path / "out"), "--device", "cpu"]
    cli.main(words)
    said = capsys.readouterr()
    assert "2 predicted, 1 could not be read" in said.out
    assert "passed over: " in said.err and "broken.jpg cannot be read as an image" in said.err
    made = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert made == [
        f"{name}.{kind}" for name in ("a photo", "deeper/gray") for kind in ("json", "labels.png", "overlay.png")
    ]
    (tmp_path / "out" / "a photo.json").unlink()  # as if it had been stopped there
    before = (tmp_path / "out" / "deeper" / "gray.json").stat().st_mtime_ns
    cli.main(words)
    assert "1 predicted, 1 already existed" in capsys.readouterr().out
    assert (tmp_path / "out" / "deeper" / "gray.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit) as ended:
        cli.main(["predict", str(report.checkpoint), str(photo.parent / "broken.jpg"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 1


def test_batches_give_what_single_images_give(model, tmp_path):
    generator = np.random.default_rng(3)
    sizes = [(60, 70), (64, 96), (40, 90), (64, 97), (33, 65), (200, 40), (64, 96)]  # all but two are padded to 64 x 96
    for number, size in enumerate(sizes):
        Image.fromarray(generator.integers(0, 256, (*size, 3)).astype(np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "2b.png").write_bytes(b"no image")
    images = [str(path) for path in sorted(tmp_path.iterdir())]
    shapes = []
    outputs = type(model).outputs

    class Watched(type(model)):
        def outputs(self, images_B3HW):
            shapes.append(tuple(images_B3HW.shape))
            return outputs(self, images_B3HW)

    watched = Watched(segmenter=model.segmenter, config=model.config, classes=model.classes, source=model.source)
    found = dict(predict_many(watched, images, batch_size=3, tile=128, overlap=32))
    assert list(found) == images
    assert [shape for shape in shapes if shape[0] > 1] == [(3, 3, 64, 96)]
    assert isinstance(found.pop(images[3]), ValueError)
    for image, result in found.items():
        alone = model(image, tile=128, overlap=32)
        assert result.image == image and result.labels.shape == alone.labels.shape
        assert np.abs(result.confidence.astype(float) - alone.confidence).max() < 2e-3
        assert (
            result.labels != alone.labels
        ).mean() < 0.01  # rounding may decide between classes that are equally near
    with pytest.raises(ValueError, match="batch_size = 0: expected at least 1 image"):
        list(predict_many(model, images, batch_size=0))


def test_many_images_are_read_only_a_little_ahead(model, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "one.png")
    taken = []

    def images():
        for number in range(1000):
            taken.append(number)
            yield str(tmp_path / "one.png")

    predictions = predict_many(model, images(), batch_size=2)
    next(predictions)
    assert len(taken) <= 6
    predictions.close()


def test_images_by_folder_pattern_and_name(photo, tmp_path):
    assert find_images([str(photo), str(photo.parent)]) == [("a photo", str(photo))]
    assert find_images([str(tmp_path / "*" / "a*.png")]) == [("a photo", str(photo))]
    assert find_images(["s3://bucket/x/one.jpg?endpoint_override=e"]) == [
        ("one", "s3://bucket/x/one.jpg?endpoint_override=e")
    ]
    assert find_images(["https://host/x/one%20two.jpg?a=b/c.d"]) == [
        ("one two", "https://host/x/one%20two.jpg?a=b/c.d")
    ]
    with pytest.raises(ValueError, match="https://host/ has no file name"):
        find_images(["https://host/?a=b"])
    Image.new("RGB", (8, 8)).save(photo.with_suffix(".jpg"))
    with pytest.raises(ValueError, match=r"a photo.jpg and .*a photo.png would both be written as a photo"):
        find_images([str(photo.parent)])
    with pytest.raises(ValueError, match="no such file or folder exists"):
        find_images([str(tmp_path / "none*.png")])


# Metrics


def test_boundary_iou_is_that_of_masks_one_by_one():
    rng = np.random.default_rng(5)
    labels, predicted = (
        np.asarray(Image.fromarray(rng.integers(0, 4, (6, 8)).astype(np.uint8)).resize((80, 60), 0)).astype(np.int64)
        for _ in range(2)
    )
    labels[:7, 20:50] = -1
    counts = BoundaryIoU(4)
    counts.update(torch.from_numpy(predicted)[None], torch.from_numpy(labels)[None])
    expected = []
    predicted = np.where(labels < 0, -1, predicted)
    for label in range(4):
        bands = []
        for ids in (labels, predicted):
            mask = np.pad(ids == label, 2)  # 2 % of the diagonal, 100 pixels
            inner = np.ones((60, 80), dtype=bool)
            for dy in range(5):
                for dx in range(5):
                    inner &= mask[dy : dy + 60, dx : dx + 80]
            bands.append((ids == label) & ~inner)
        expected.append((bands[0] & bands[1]).sum() / (bands[0] | bands[1]).sum())
    assert counts.compute()["iou_per_class"].tolist() == pytest.approx(expected)


def test_confused_pairs_are_counted_and_bounded():
    labels, predicted = torch.tensor([0, 0, 1, 2, -1, 3]), torch.tensor([1, 1, 1, 0, 0, 2])
    pairs = ConfusedPairs(4)
    pairs.update(predicted, labels)
    assert pairs.most(2)[0] == (0, 1, 2) and len(pairs.most(9)) == 3 and pairs.missing == 0
    small = ConfusedPairs(1000, capacity=10)
    for start in range(0, 900, 30):
        small.update(torch.arange(start, start + 30) + 1, torch.arange(start, start + 30))
        small.update(torch.full((50,), 7), torch.full((50,), 999))
    assert len(small.most(1000)) <= 10 and small.most(1) == [(999, 7, 50 * 30)]


def test_calibration_error_of_known_bins():
    error = CalibrationError()
    error.update(torch.tensor([0.9, 0.9, 0.9, 0.9, 0.5]), torch.tensor([True, True, False, False, True]))
    assert error.compute() == pytest.approx((4 * 0.4 + 0.5) / 5)
