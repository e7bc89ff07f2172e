"""A trained model that was exported predicts what it predicted before, and what is damaged or in the way is named."""

import json

import numpy as np
import pytest
import torch

import kiloseg
from kiloseg import cli
from kiloseg.config import Config, Model
from kiloseg.models import Segmenter
from kiloseg.overrides import flatten
from kiloseg.training.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["background", "cup", "chair", "lamp", "plänt"]


@pytest.fixture
def source(tmp_path, pixels):
    """A checkpoint of an untrained model whose classes are nearest to different parts of `pixels`."""
    torch.manual_seed(0)
    config = Config(model=Model(arch="fpn", backbone="test_resnet", embed_dim=6))
    classes = {
        "ids": [0, 3, 4, 8, 9], "names": NAMES, "background": 0, "train_samples": [9, 5, 4, 3, 2], "data": "room", "digest": "x",
    }  # fmt: skip
    segmenter = Segmenter(config.model, 5).eval()
    with torch.no_grad():
        outputs_Dhw = segmenter(torch.from_numpy(pixels[:64, :96].transpose(2, 0, 1).copy())[None])[0]
        segmenter.head.table.rows_CD.copy_(outputs_Dhw[:, [1, 4, 8, 11, 14], [2, 21, 5, 12, 17]].T)
    content = {"config": flatten(config), "num_classes": 5, "classes": classes, "model": segmenter.state_dict()}
    return str(save_checkpoint(tmp_path / "model", 7, content, keep=1))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (75, 98, 3)).astype(np.uint8)


def test_a_folder_predicts_what_its_checkpoint_does(source, tmp_path, pixels):
    out = tmp_path / "exported"
    cli.main(["export", source, "--format", "folder", "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == ["classes.json", "config.json", "model.safetensors"]
    before, after = kiloseg.load(source, device="cpu"), kiloseg.load(out, device="cpu")
    assert after.classes.record() == before.classes.record() and after.config == before.config
    stored = load_checkpoint(source)["model"]
    loaded = after.segmenter.state_dict()
    assert stored.keys() == loaded.keys() and all(torch.equal(stored[name], loaded[name]) for name in stored)
    expected, result = before(pixels), after(pixels)
    assert np.array_equal(result.labels, expected.labels) and len(np.unique(result.labels)) > 1
    assert np.array_equal(result.confidence, expected.confidence)


def test_a_folder_is_a_source_of_other_commands(source, tmp_path):
    cli.main(["export", source, "--format", "folder", "--out", str(tmp_path / "exported")])
    cli.main(["classes", str(tmp_path / "exported"), "rename", "cup", "mug", "--out", str(tmp_path / "renamed")])
    cli.main(["export", str(tmp_path / "renamed"), "--format", "folder", "--out", str(tmp_path / "again")])
    assert kiloseg.load(tmp_path / "again").classes.names == ["background", "mug", *NAMES[2:]]


def test_a_folder_lies_in_an_object_store(source, s3, pixels):
    cli.main(["export", source, "--format", "folder", "--out", s3])
    model = kiloseg.load(s3, device="cpu")
    assert model.classes.names == NAMES
    assert np.array_equal(model(pixels).labels, kiloseg.load(source, device="cpu")(pixels).labels)
    with pytest.raises(SystemExit, match=r"set/classes.json exists; give --overwrite"):
        cli.main(["export", source, "--format", "folder", "--out", s3])


def test_a_folder_is_replaced_only_if_asked(source, tmp_path):
    words = ["export", source, "--format", "folder", "--out", str(tmp_path / "exported")]
    cli.main(words)
    before = (tmp_path / "exported" / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match=r"classes.json exists; give --overwrite, or another --out"):
        cli.main(words)
    (tmp_path / "exported" / "model.safetensors").write_bytes(b"damaged")
    cli.main([*words, "--overwrite"])
    assert (tmp_path / "exported" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", lambda data: data[:-1], r"model.safetensors is not the file that config.json lists"),
        ("classes.json", lambda data: data.replace(b"cup", b"mug"), r"classes.json is not the file that config.json lists"),
        ("model.safetensors", None, r"model.safetensors is missing"),
        ("config.json", lambda data: data[:40], r"config.json is not JSON"),
        ("config.json", lambda data: b"[]", r"config.json holds a list: expected an object"),
        ("config.json", lambda data: json.dumps({"format": "x"}).encode(), r"config.json has format 'x': expected"),
        ("config.json", lambda data: data.replace(b"num_classes", b"classes", 1), r"config.json lacks num_classes"),
        ("config.json", lambda data: data.replace(b'classes": 5', b'classes": 6'), r"says 6 classes, classes.json names 5"),
        ("config.json", lambda data: data.replace(b'embed_dim": 6', b'embed_dim": 7'), r"weights that do not fit its settings"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_named(name, damage, message, source, tmp_path):
    cli.main(["export", source, "--format", "folder", "--out", str(tmp_path / "exported")])
    path = tmp_path / "exported" / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        kiloseg.load(tmp_path / "exported")
    if "export" in str(error.value).partition("; ")[2]:
        assert str(error.value).endswith("again with --overwrite")
        cli.main(["export", source, "--format", "folder", "--out", str(tmp_path / "exported"), "--overwrite"])
        assert kiloseg.load(tmp_path / "exported").classes.names == NAMES
