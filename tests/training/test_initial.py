"""Fine-tuning: a run starts from a checkpoint of another, whose classes and head may differ."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from kiloseg.data.description import read_info, write_info
from kiloseg.overrides import override
from kiloseg.storage.errors import DataError
from kiloseg.training.checkpoint import load_checkpoint
from kiloseg.training.initial import initial_state, take_over
from kiloseg.training.loop import train
from kiloseg.training.state import TrainState
from kiloseg.training.workers import Workers


class NoBadSamples:
    def state(self, world, device):
        return {}


def begun(config):
    """The model of a run before its first step, and what it says it starts from."""
    info = read_info(config.data.path)
    number = config.data.num_classes or info.num_classes
    state = TrainState(config, number, Workers.of_process(), NoBadSamples())
    return {name: tensor.clone() for name, tensor in state.segmenter.state_dict().items()}, state.origin


@pytest.fixture(scope="module")
def trained(squares, tmp_path_factory):
    """Checkpoints of an embedding, a dense and a prototype head, by its name."""
    from conftest import quick_run

    runs = {}
    for head in ("embedding", "dense", "prototype"):
        config = quick_run(squares, tmp_path_factory.mktemp(head) / "train")
        runs[head] = override(config, {"model.head": head, "trainer.steps": 2, "trainer.validate_every": 0})
        train(runs[head], lambda report: None)
    return runs


@pytest.fixture
def renamed(squares, tmp_path):
    """The same data with other names of classes, in another order."""
    directory = tmp_path / "renamed"
    shutil.copytree(squares, directory)
    info = read_info(directory)
    write_info(
        directory,
        dataclasses.replace(info, classes=["background", "square 5", "new", "square 1", "other", "square 2"]),
    )
    return str(directory)


def content(config):
    return load_checkpoint(Path(config.trainer.output) / f"step-{config.trainer.steps:08d}.pt")


@pytest.mark.parametrize(("head", "table"), [("embedding", "head.table.rows_CD"), ("prototype", "head.table.rows_CkD")])
def test_rows_of_the_table_follow_the_names(trained, renamed, head, table):
    source = trained[head]
    config = override(source, {"data.path": renamed, "model.weights": source.trainer.output, "trainer.seed": 5})
    model, origin = begun(config)
    plain, _ = begun(override(config, {"model.weights": "none"}))
    stored = content(source)["model"]
    rows, there, fresh = (state[table] for state in (model, stored, plain))
    for mine, theirs in {0: 0, 1: 5, 3: 1, 5: 2}.items():
        assert torch.equal(rows[mine], there[theirs])
    for new in (2, 4):
        assert torch.equal(rows[new], fresh[new]) and not torch.equal(rows[new], there[new])
    for name, tensor in model.items():
        if name != table:
            assert torch.equal(tensor, stored[name]), name
    assert origin.startswith(f"starts from {source.trainer.output}/step-00000002.pt (fpn over test_resnet at step 2)")
    assert "4 of 6 classes start from the 6 there, by name" in origin


def test_outputs_of_a_dense_head_follow_the_names(trained, renamed):
    source = trained["dense"]
    model, origin = begun(override(source, {"data.path": renamed, "model.weights": source.trainer.output}))
    stored = content(source)["model"]
    last = [name for name in model if name.startswith("network.segmentation_head.")]
    assert {len(model[name]) for name in last} == {6}
    for name in last:
        assert torch.equal(model[name][3], stored[name][1]) and torch.equal(model[name][1], stored[name][5])
    assert "4 of 6 classes" in origin


@pytest.mark.parametrize(("before", "after"), [("dense", "embedding"), ("embedding", "dense")])
def test_another_head_takes_the_trunk(trained, before, after):
    source = trained[before]
    model, origin = begun(override(source, {"model.head": after, "model.weights": source.trainer.output}))
    stored = content(source)["model"]
    trunk = [name for name in model if name.startswith(("network.encoder.", "network.decoder."))]
    assert trunk and all(torch.equal(model[name], stored[name]) for name in trunk)
    assert "0 of 6 classes" in origin


def test_fewer_classes_and_another_dimension(trained):
    source = trained["embedding"]
    few, origin = begun(override(source, {"data.num_classes": 4, "model.weights": source.trainer.output}))
    assert few["head.table.rows_CD"].shape == (4, 4) and "4 of 4 classes start from the 6 there" in origin
    _, origin = begun(override(source, {"model.embed_dim": 5, "model.weights": source.trainer.output}))
    assert "0 of 6 classes" in origin


def test_fine_tuning_learns_on_and_its_resumption_needs_the_source_no_more(trained, renamed, tmp_path):
    source = trained["embedding"]
    copy = tmp_path / "source"
    shutil.copytree(source.trainer.output, copy)
    settings = {"data.path": renamed, "model.weights": str(copy), "trainer.output": str(tmp_path / "tuned")}
    config = override(source, settings | {"trainer.steps": 4, "trainer.validate_every": 2})
    whole = train(config, lambda report: None)
    assert 0 < whole["val/miou"] <= 1
    (tmp_path / "tuned" / "step-00000004.pt").unlink()
    shutil.rmtree(copy)
    again = train(config, lambda report: None, resume=tmp_path / "tuned")
    assert again["val/miou"] == whole["val/miou"] and again["val/iou_per_class"] == whole["val/iou_per_class"]


def test_exported_folder_gives_what_its_checkpoint_does(trained, renamed, tmp_path):
    """One that kiloseg export --format folder wrote."""
    from kiloseg import cli

    source = trained["embedding"]
    cli.main(["export", source.trainer.output, "--format", "folder", "--out", str(tmp_path / "my model")])
    config = override(source, {"data.path": renamed, "model.weights": source.trainer.output})
    model, origin = begun(config)
    exported, same = begun(override(config, {"model.weights": str(tmp_path / "my model")}))
    assert model.keys() == exported.keys() and all(torch.equal(model[name], exported[name]) for name in model)
    assert "4 of 6 classes start from the 6 there, by name" in same
    assert same.partition(" (")[2] == origin.partition(" (")[2]
    (tmp_path / "my model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"model.safetensors is not the file that config.json lists"):
        begun(override(config, {"model.weights": str(tmp_path / "my model")}))


def test_another_backbone_is_refused_by_name(trained, quick):
    source = trained["embedding"].trainer.output
    with pytest.raises(
        ValueError, match=r"only \d+ of \d+ tensors of this backbone are there; use model.backbone = 'test_resnet'"
    ):
        begun(override(quick, {"model.backbone": "test_efficientnet", "model.weights": source}))


def test_what_is_no_checkpoint_is_named(quick, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' is a folder without checkpoints"):
        initial_state(str(tmp_path / "empty"))
    (tmp_path / "empty" / "step-00000001.pt").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(ValueError, match=r"all checkpoints .* damaged"):
        initial_state(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"model.weights = '.*nothing.pt' is no"):
        begun(override(quick, {"model.weights": str(tmp_path / "nothing.pt")}))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "backbone.pt")
    assert initial_state(str(tmp_path / "backbone.pt")) is None
    assert [initial_state(word) for word in ("none", "hub", "package")] == [None] * 3


def test_checkpoint_without_names_of_classes_gives_the_trunk(trained, quick):
    from kiloseg.models import build_segmenter

    stored = content(trained["embedding"])
    del stored["classes"]
    model = build_segmenter(quick, 6)
    fresh = model.head.table.rows_CD.detach().clone()
    names = {"names": ["background", *(f"square {label}" for label in range(1, 6))]}
    assert "0 of 6 classes" in take_over(model, stored, names)
    assert torch.equal(model.head.table.rows_CD, fresh)
