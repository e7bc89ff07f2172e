"""What is exported as ONNX or as a program of torch labels pixels as the model does, whatever the size of images and table."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import kiloseg
from kiloseg import cli
from kiloseg.config import Config, Loss, Model
from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.model import TrainedModel
from kiloseg.inference.onnx_model import check_onnx, onnx_model
from kiloseg.models import Segmenter, nearest_class
from kiloseg.models.heads import head_class
from kiloseg.overrides import flatten
from kiloseg.storage.errors import DataError
from kiloseg.training.checkpoint import save_checkpoint

ROOT = Path(__file__).parents[2]
NAMES = ["background", "cup", "chair", "lamp", "plänt"]
CLASSES = {
    "ids": [0, 3, 4, 8, 9], "names": NAMES, "background": 0, "train_samples": [9, 5, 4, 3, 2], "data": "room", "digest": "x",
}  # fmt: skip
SIZES = [(1, 64, 64), (3, 75, 98), (1, 33, 250), (2, 32, 32)]

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(batch, height, width):
    small = np.random.default_rng(height).integers(0, 256, (batch, 3, -(-height // 9), -(-width // 9)), dtype=np.uint8)
    return small.repeat(9, 2).repeat(9, 3)[:, :, :height, :width].copy()


def untrained():
    """A network whose classes are nearest to different parts of an image."""
    torch.manual_seed(0)
    segmenter = Segmenter(Model(arch="fpn", backbone="test_resnet", embed_dim=6), 5).eval()
    with torch.no_grad():
        outputs_PD = segmenter(torch.from_numpy(noise(1, 96, 128)))[0].flatten(1).T
        segmenter.head.table.rows_CD.copy_(outputs_PD[torch.randperm(len(outputs_PD))[:5]])
    return segmenter


class OneConvolution(torch.nn.Module):
    """The smallest network with a head: an export of it takes a tenth of the time."""

    def __init__(self, head, num_classes, dim):
        super().__init__()
        torch.manual_seed(0)
        kind, settings = head_class(head), Model(embed_dim=dim, head=head)
        self.num_classes = num_classes
        self.head = kind(settings, Loss(), num_classes)
        self.network = torch.nn.Conv2d(3, kind.num_outputs(settings, num_classes), 4, stride=4)

    def forward(self, images):
        return self.head(self.network(images.float() / 255 - 0.5))


def model_of(head, num_classes, dim=6):
    segmenter = OneConvolution(head, num_classes, dim).eval()
    classes = ModelClasses.unnamed(num_classes)
    return TrainedModel(segmenter=segmenter, config=Config(), classes=classes, source="one")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    config = Config(model=Model(arch="fpn", backbone="test_resnet", embed_dim=6))
    content = {
        "config": flatten(config), "num_classes": 5, "classes": CLASSES, "model": untrained().state_dict(),
    }  # fmt: skip
    return str(save_checkpoint(tmp_path_factory.mktemp("model"), 7, content, keep=1))


@pytest.fixture(scope="module")
def file(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "mine.onnx"
    cli.main(["export", source, "--format", "onnx", "--out", str(out)])
    return out


def assert_same(labels, outputs, model, images):
    for number, image in enumerate(images):
        expected = model(image.transpose(1, 2, 0).copy()).labels
        assert labels[number].shape == expected.shape
        assert (labels[number] == expected).mean() > 0.999, "two classes may be equally near up to rounding"
    expected = model.outputs(
        torch.from_numpy(np.pad(images, [(0, 0)] * 2 + [(0, -side % 32) for side in images.shape[2:]]))
    )
    assert np.abs(outputs - expected.numpy()).max() < 1e-5 * float(expected.abs().max()) + 1e-5


def test_a_file_labels_images_of_any_size_as_the_model_does(source, file):
    model, session = kiloseg.load(source, device="cpu"), onnxruntime.InferenceSession(file)
    seen = set()
    for size in SIZES:
        images = noise(*size)
        labels, outputs = session.run(["labels", "embeddings"], {"images": images})
        assert_same(labels, outputs, model, images)
        seen |= set(np.unique(labels).tolist())
    assert len(seen) > 2


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_network_that_sees_images_enlarged_is_exported(kind, tmp_path):
    torch.manual_seed(0)
    config = Config(model=Model(arch="fpn8", backbone="test_resnet", embed_dim=6, input_scale=2))
    segmenter = Segmenter(config.model, 5).eval()
    content = {"config": flatten(config), "num_classes": 5, "classes": CLASSES, "model": segmenter.state_dict()}
    checkpoint = save_checkpoint(tmp_path / "model", 7, content, keep=1)
    out = tmp_path / f"mine.{'onnx' if kind == 'onnx' else 'pt2'}"
    cli.main(["export", str(checkpoint), "--format", kind, "--out", str(out)])
    model = kiloseg.load(str(checkpoint), device="cpu")
    for size in SIZES:
        images = noise(*size)
        if kind == "onnx":
            labels, outputs = onnxruntime.InferenceSession(out).run(["labels", "embeddings"], {"images": images})
        else:
            with torch.no_grad():
                labels, outputs = (each.numpy() for each in torch.export.load(out).module()(torch.from_numpy(images)))
        assert_same(labels, outputs, model, images)


def test_another_table_gives_other_classes(source, file):
    model, session = kiloseg.load(source, device="cpu"), onnxruntime.InferenceSession(file)
    table = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32)
    labels, outputs = session.run(["labels", "embeddings"], {"images": noise(1, 64, 96), "table": table})
    expected = nearest_class(torch.from_numpy(outputs), torch.from_numpy(table), size=(64, 96)).numpy()
    assert (labels == expected).mean() > 0.999 and len(np.unique(labels)) > 5
    default = model.segmenter.head.table.rows_CD.detach().numpy()
    (own,) = session.run(["labels"], {"images": noise(1, 64, 96), "table": default})
    assert np.array_equal(own, session.run(["labels"], {"images": noise(1, 64, 96)})[0])


def opset_named(words):
    """The nearest version that the refusal of an export says is written."""
    with pytest.raises(SystemExit) as refused:
        cli.main(words)
    first, last = map(int, re.search(r"expected (\d+) to (\d+)", str(refused.value)).groups())
    return first if int(words[-1]) < first else last


def opset_of(proto):
    (version,) = (entry.version for entry in proto.opset_import if not entry.domain)
    return version


@pytest.mark.parametrize(("head", "refused"), [("embedding", 17), ("dense", 24), ("prototype", 24)])
def test_heads_and_the_opsets_that_a_refusal_names(head, refused, source, tmp_path):
    opset = opset_named(["export", source, "--format", "onnx", "--out", str(tmp_path / "x"), "--opset", str(refused)])
    model = model_of(head, 40)
    content = onnx_model(model, opset=opset)
    assert check_onnx(content, model) < 1e-5
    assert opset_of(onnx.load_from_string(content)) == opset


def test_a_hundred_thousand_classes_in_chunks():
    model = model_of("embedding", 100_000, dim=16)
    proto = onnx.load_from_string(onnx_model(model))
    assert len(proto.graph.node) < 100, "the graph does not grow with the classes"
    images = noise(1, 50, 90)
    (labels,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(["labels"], {"images": images})
    whole = torch.from_numpy(np.pad(images, [(0, 0), (0, 0), (0, 14), (0, 6)]))
    expected = model.segmenter.head.predict(model.outputs(whole), (64, 96))[:, :50, :90].numpy()
    assert (labels == expected).mean() > 0.999
    assert labels.max() > 2**24 / (50 * 90) * 10, "labels come from many chunks"


def test_a_file_that_computes_something_else_is_refused(source, file):
    model = kiloseg.load(source, device="cpu")
    proto = onnx.load(file)
    (table,) = (one for one in proto.graph.initializer if one.name == "table")
    table.raw_data = np.roll(np.frombuffer(table.raw_data, np.float32).reshape(5, 6), 1, axis=0).tobytes()
    with pytest.raises(
        DataError, match=r"step-00000007.pt as ONNX differs from the model on 1 images of 64 x 64: .* labels in \d"
    ):
        check_onnx(proto.SerializeToString(), model)


def test_the_example_needs_no_torch(source, file, tmp_path):
    Image.fromarray(noise(1, 75, 98)[0].transpose(1, 2, 0)).save(tmp_path / "photo.png")
    example = ROOT / "examples" / "predict_onnx.py"
    assert len(example.read_text().splitlines()) <= 25
    block = "import sys; sys.modules['torch'] = None; sys.argv[0:1] = []; import runpy; runpy.run_path(sys.argv[0])"
    done = subprocess.run(
        [sys.executable, "-c", block, str(example), str(file), str(tmp_path / "photo.png"), str(tmp_path / "labels.png")],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = kiloseg.load(source, device="cpu")(tmp_path / "photo.png")
    with Image.open(tmp_path / "labels.png") as labels:
        assert labels.mode == "I;16" and (np.asarray(labels) == result.class_ids).mean() > 0.999
    assert sorted(line.split("%")[1].strip() for line in done.stdout.splitlines()) == sorted(result.names)


def test_metadata_describe_the_classes(file):
    properties = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    classes = json.loads(properties["classes"])
    assert (classes["names"], classes["ids"], classes["data"], classes["digest"]) == (
        NAMES,
        [0, 3, 4, 8, 9],
        "room",
        "x",
    )


@pytest.mark.parametrize(("head", "num_classes"), [("embedding", 150), ("dense", 150), ("prototype", 15)])
def test_a_program_of_torch(head, num_classes, tmp_path):
    from kiloseg.inference.exported import torch_program

    model = model_of(head, num_classes)  # prototypes are ten a class
    (tmp_path / "mine.pt2").write_bytes(torch_program(model))
    extra = {"classes.json": ""}
    program = torch.export.load(tmp_path / "mine.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"])["names"][:2] == ["class 0", "class 1"]
    with torch.no_grad():
        for size in SIZES[:3]:
            images = noise(*size)
            labels, outputs = program.module()(torch.from_numpy(images))
            assert_same(labels.numpy(), outputs.numpy(), model, images)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--opset", "17"], "--opset 17 is too old: expected 18 to 23"),
        (["--opset", "24"], "--opset 24 is too new: expected 18 to 23"),
        (
            ["--out", "s3://bucket/mine.onnx?x=y"],
            "--out s3://bucket/mine.onnx: expected a path of this machine for --format onnx",
        ),
        (["--out", "."], r"--out \. is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused(words, message, source, tmp_path):
    with pytest.raises(SystemExit, match=message):
        cli.main(["export", source, "--format", "onnx", "--out", str(tmp_path / "mine.onnx"), *words])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_opset_that_a_refusal_names_is_exported(source, tmp_path):
    words = ["export", source, "--format", "onnx", "--out", str(tmp_path / "my model.onnx"), "--opset"]
    nearest = opset_named([*words, "17"])
    cli.main([*words, str(nearest)])
    assert opset_of(onnx.load(tmp_path / "my model.onnx")) == nearest


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_nothing_is_overwritten_unless_asked(format, source, tmp_path):
    out = tmp_path / "mine"
    out.write_text("precious")
    with pytest.raises(SystemExit, match="mine exists; give --overwrite, or another --out"):
        cli.main(["export", source, "--format", format, "--out", str(out)])
    assert out.read_text() == "precious"
