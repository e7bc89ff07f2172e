"""Before its first step a run refuses shapes that its network cannot take, in training and in validation."""

import shutil

import pytest
import torch
from conftest import make_samples

from kiloseg.config import HEADS
from kiloseg.data.description import read_info, write_info
from kiloseg.data.index import read_index, write_index
from kiloseg.data.writing.shard import write_shard
from kiloseg.models import head, heads
from kiloseg.overrides import override
from kiloseg.training import loop
from kiloseg.training.loop import train
from kiloseg.training.rehearsal import rehearse, shapes_to_try


@pytest.fixture
def no_step(monkeypatch):
    def take(steps):
        pytest.fail("a step was taken")

    monkeypatch.setattr(loop._Steps, "take", take)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model.arch": "deeplabv3plus", "trainer.batch_size": 1},
            r"'deeplabv3plus' over model.backbone = 'test_resnet' cannot take training images of data.crop = 64 px, "
            r"trainer.batch_size = 1 over 1 workers \(Expected more than 1 value per channel",
        ),
        (
            {"model.arch": "deeplabv3plus", "trainer.batch_size": 9, "trainer.micro_batch_size": 4},
            "trainer.batch_size = 9 over 1 workers, trainer.micro_batch_size = 4",
        ),
        ({"model.backbone": "no_such_net"}, "model.backbone = 'no_such_net' is not a timm model"),
    ],
)
def test_what_training_cannot_take_is_refused_before_the_first_step(quick, settings, message):
    with pytest.raises(ValueError, match=message):
        train(override(quick, settings), lambda report: None)


class Picky(torch.nn.Module):
    """A network's encoder that takes no image larger than a training crop."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        assert images.shape[2] <= 64, f"Input height ({images.shape[2]}) doesn't match model (64)"
        return self.encoder(images)

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "encoder" else getattr(self.encoder, name)


@pytest.mark.usefixtures("no_step")
def test_what_validation_cannot_take_is_refused_before_the_first_step(quick, tmp_path, monkeypatch):
    """One image of the validation split is larger than the training crop."""
    directory = tmp_path / "data"
    shutil.copytree(quick.data.path, directory)
    info = read_info(directory)
    shard, rows = write_shard(directory / "val-large.tar", list(make_samples("val", 1, size=90)), num_classes=6)
    info.splits["val"].append(shard)
    write_info(directory, info)
    write_index(directory, [*read_index(directory).to_pylist(), *({"split": "val", **row} for row in rows)])
    from kiloseg.models import segmenter

    built = segmenter._build_network

    def build(*arguments):
        network = built(*arguments)
        network.encoder = Picky(network.encoder)
        return network

    monkeypatch.setattr(segmenter, "_build_network", build)
    config = override(quick, {"data.path": str(directory), "data.val_batch_size": 5, "model.embed_dim": 7})
    with pytest.raises(
        ValueError,
        match=r"'fpn' over model.backbone = 'test_resnet' cannot take validation images of 96 x 96 px, data.val_batch_size = "
        r"2 \(Input height \(96\)",
    ):
        train(config, lambda report: None)


def test_each_kind_of_run_is_tried_once_and_draws_no_random_numbers(quick, monkeypatch):
    config = override(quick, {"model.embed_dim": 9})
    before = torch.random.get_rng_state()
    rehearse(config, 6, world=1, validation=[(5, 64, 96)])
    assert torch.equal(torch.random.get_rng_state(), before)
    monkeypatch.setattr("kiloseg.training.rehearsal.build_segmenter", lambda *_: pytest.fail("built again"))
    rehearse(override(config, {"trainer.output": "elsewhere", "data.flip": 0.1}), 6, world=1, validation=[(5, 64, 96)])
    with pytest.raises(pytest.fail.Exception, match="built again"):
        rehearse(config, 6, world=1, validation=[(5, 64, 128)])


def test_the_extreme_batches_are_tried():
    shapes = [(4, 64, 64), (4, 128, 96), (4, 96, 96), (1, 96, 64), (4, 32, 64)]
    assert shapes_to_try(shapes) == [(4, 128, 96), (4, 32, 64), (1, 96, 64)]
    assert shapes_to_try([(4, 64, 64)]) == [(4, 64, 64)]
    assert shapes_to_try([]) == []


def test_a_head_that_reads_values_is_not_tried(quick, monkeypatch):
    """As a user may register one."""
    monkeypatch.setattr(head, "_CLASSES", dict(head._CLASSES))
    monkeypatch.setitem(HEADS, "reader", HEADS["embedding"])

    @heads.register_head("reader")
    class Reader(heads.EmbeddingHead):
        def forward(self, outputs_BNhw):
            assert outputs_BNhw.abs().max().item() < 1e9
            return outputs_BNhw

    config = override(quick, {"model.head": "reader", "trainer.steps": 2, "trainer.validate_every": 0})
    assert train(config, lambda report: None).step == 2
