"""Classes of a trained model are rows: they are renamed, removed, merged and added without training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import kiloseg
from kiloseg import cli
from kiloseg.config import Config, Model
from kiloseg.models import Segmenter
from kiloseg.overrides import flatten
from kiloseg.training.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["background", "cup", "chair", "lamp", "plant"]


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    config = Config(model=Model(arch="fpn", backbone="test_resnet", embed_dim=6))
    classes = {
        "ids": [0, 3, 4, 8, 9], "names": NAMES, "background": 0, "train_samples": [9, 5, 4, 3, 2], "data": "room", "digest": "x",
    }  # fmt: skip
    content = {
        "config": flatten(config), "num_classes": 5, "classes": classes, "model": Segmenter(config.model, 5).state_dict(),
    }  # fmt: skip
    return str(save_checkpoint(tmp_path / "model", 7, content, keep=1))


def table(path):
    return F.normalize(load_checkpoint(path)["model"]["head.table.rows_CD"], dim=1)


def test_classes_are_listed_renamed_removed_and_merged(source, tmp_path, capsys):
    cli.main(["classes", source, "list"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6 and shown[2].split()[:3] == ["3", "5", "cup"]
    before = table(source)

    cli.main(["classes", source, "rename", "cup", "mug", "--out", str(tmp_path / "renamed")])
    assert kiloseg.load(tmp_path / "renamed").classes.names == ["background", "mug", "chair", "lamp", "plant"]

    cli.main(["classes", source, "remove", "background", "lamp", "--out", str(tmp_path / "removed")])
    model = kiloseg.load(tmp_path / "removed")
    assert model.classes.names == ["cup", "chair", "plant"] and model.classes.ids.tolist() == [3, 4, 9]
    assert model.classes.background is None and model.classes.train_samples.tolist() == [5, 4, 2]
    torch.testing.assert_close(table(tmp_path / "removed" / "step-00000007.pt"), before[[1, 2, 4]])
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert set(model(pixels).names) <= {"cup", "chair", "plant"}

    cli.main(["classes", source, "merge", "cup", "plant", "--out", str(tmp_path / "merged")])
    assert kiloseg.load(tmp_path / "merged").classes.names == NAMES[:4]
    merged = table(tmp_path / "merged" / "step-00000007.pt")
    torch.testing.assert_close(merged[1], F.normalize(before[1] + before[4], dim=0))
    torch.testing.assert_close(merged[[0, 2, 3]], before[[0, 2, 3]])


def test_a_class_that_is_added_is_found_where_it_was_shown(source, tmp_path):
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 60, (96, 96, 3)).astype(np.uint8)
    pixels[32:64, 32:64] = (250, 20, 20)
    mask = np.zeros((96, 96), dtype=np.uint8)
    mask[32:64, 32:64] = 255
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    example = [str(tmp_path / "image.png"), str(tmp_path / "mask.png")]
    cli.main(["classes", source, "add", "brick", *example, "--out", str(tmp_path / "more")])
    model = kiloseg.load(tmp_path / "more")
    assert model.classes.names == [*NAMES, "brick"] and model.classes.ids[-1] == 10
    # By hand: unit vectors at full resolution, their mean over the mask.
    with torch.no_grad():
        outputs = model.outputs(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        units = F.normalize(F.interpolate(outputs, size=(96, 96), mode="bilinear", align_corners=False), dim=1)
    expected = F.normalize(units[0][:, torch.from_numpy(mask > 0)].mean(1), dim=0)
    torch.testing.assert_close(table(tmp_path / "more" / "step-00000007.pt")[-1], expected, rtol=1e-4, atol=1e-5)
    assert (model(pixels).labels[mask > 0] == 5).mean() > 0.5


def test_refusals_name_what_is_wrong(source, tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "empty.png")
    Image.new("L", (9, 8), 1).save(tmp_path / "wide.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    image = str(tmp_path / "image.png")
    out = ["--out", str(tmp_path / "out")]
    for words, message in (
        (["rename", "cup", "chair", *out], "a class is called 'chair' already"),
        (["rename", "mug", "bowl", *out], "no classes are called 'mug'"),
        (["remove", *NAMES[1:], *out], "leaves 1: expected at least 2"),
        (["merge", "cup", "cup", *out], "expected two different classes or more"),
        (["rename", "cup", *out], "rename cup: expected rename OLD NEW"),
        (["remove", "cup"], "--out is missing"),
        (["remove", "cup", "--out", str(tmp_path / "model")], "holds checkpoints already"),
        (["add", "brick", image, str(tmp_path / "empty.png"), *out], "empty.png is empty"),
        (["add", "brick", image, str(tmp_path / "wide.png"), *out], r"wide.png is \(8, 9\), its image .* \(8, 8\)"),
        (["add", "cup", image, image, *out], "a class is called 'cup' already"),
    ):
        with pytest.raises(SystemExit, match=message):
            cli.main(["classes", source, *words])
    assert not (tmp_path / "out").exists()
