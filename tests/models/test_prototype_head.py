"""Prototypes follow the means of their pixels; a head of them trains, resumes, predicts, and is planned like the others."""

import copy

import pytest
import torch
import torch.nn.functional as F

from kiloseg.config import Config, Loss, Model
from kiloseg.memory import plan
from kiloseg.models import build_segmenter
from kiloseg.models.heads import PrototypeHead
from kiloseg.overrides import head_name, head_overrides, override
from kiloseg.training.checkpoint import load_checkpoint
from kiloseg.training.evaluation import load_segmenter
from kiloseg.training.loop import train
from kiloseg.training.optimizer import build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = head_overrides("prototype")


def head_of(num_classes, k, dim=6, **loss):
    torch.manual_seed(0)
    return PrototypeHead(Model(head="prototype", embed_dim=dim, prototypes=k), Loss(**loss), num_classes)


def around(centers_CD, labels_BHW, spread=0.1):
    """Embeddings at every pixel near the center of its class; unlabeled ones somewhere."""
    pixels = centers_CD[labels_BHW.clamp(min=0)] + spread * torch.randn(*labels_BHW.shape, centers_CD.shape[1])
    return pixels.permute(0, 3, 1, 2).contiguous()


def test_a_prototype_moves_by_its_momentum_towards_the_mean_of_the_pixels_that_are_right():
    """By hand: one prototype a class; two pixels of class 0, one of which class 1 is nearer to, and an unlabeled one."""
    head = head_of(2, 1, dim=2, prototype_momentum=0.75)
    head.table.rows_CkD.copy_(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    pixels = torch.tensor([[3.0, 0.3], [0.4, 2.0], [5.0, 5.1]]).T.view(1, 2, 1, 3)
    head.loss(pixels, torch.tensor([[[0, 0, -1]]]))
    head.finish_step()
    moved = 0.75 * torch.tensor([1.0, 0.0]) + 0.25 * F.normalize(torch.tensor([3.0, 0.3]), dim=0)
    torch.testing.assert_close(head.table.rows_CkD[0, 0], F.normalize(moved, dim=0))
    torch.testing.assert_close(head.table.rows_CkD[1, 0], torch.tensor([0.0, 1.0]))


def test_prototypes_come_to_the_means_of_their_classes():
    centers = F.normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(3)), dim=1)
    head = head_of(5, 1, prototype_momentum=0.9)
    # Rough guesses of the centers, so that some pixels are right from the start.
    head.table.rows_CkD.copy_(F.normalize(centers + 0.25 * torch.randn(5, 6), dim=1)[:, None])
    before = (head.table.rows_CkD[:, 0] * centers).sum(1)
    labels = torch.randint(-1, 5, (2, 16, 16))
    pixels = around(centers, labels)
    for _ in range(60):
        head.loss(pixels, labels)
        head.finish_step()
    units = F.normalize(pixels, dim=1).permute(0, 2, 3, 1)
    means = torch.stack([F.normalize(units[labels == label].mean(0), dim=0) for label in range(5)])
    after = (head.table.rows_CkD[:, 0] * means).sum(1)
    assert before.min() < 0.9 and after.min() > 0.99


def test_prototypes_of_a_class_divide_its_modes():
    """Two clusters in a class: each prototype ends in one of them."""
    modes = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(4)), dim=1)
    head = head_of(2, 2, prototype_momentum=0.9)
    which = torch.randint(0, 4, (1, 20, 20))
    pixels, labels = around(modes, which), which // 2
    start = torch.stack([modes[:2].mean(0), modes[2:].mean(0)])[:, None].expand(-1, 2, -1)
    head.table.rows_CkD.copy_(F.normalize(start + 0.05 * torch.randn(2, 2, 6), dim=2))
    for _ in range(60):
        head.loss(pixels, labels)
        head.finish_step()
    cosine = torch.einsum("ckd,cmd->ckm", head.table.rows_CkD, modes.view(2, 2, 6))
    assert (cosine.amax(2) > 0.98).all()
    assert (cosine.argmax(2).sort(dim=1).values == torch.tensor([0, 1])).all(), "not both in one"


def test_prototypes_stay_in_evaluation_and_with_a_momentum_of_1():
    labels = torch.randint(-1, 5, (2, 8, 8))
    pixels = torch.randn(2, 6, 4, 4)
    for head in (head_of(5, 3).eval(), head_of(5, 3, prototype_momentum=1.0)):
        before = head.table.rows_CkD.clone()
        head.loss(pixels, labels)
        head.finish_step()
        torch.testing.assert_close(head.table.rows_CkD, before)


def test_parts_of_a_batch_move_prototypes_once():
    whole, parts = head_of(5, 1, prototype_momentum=0.5), head_of(5, 1, prototype_momentum=0.5)
    labels = torch.randint(-1, 5, (4, 8, 8))
    pixels = torch.randn(4, 6, 4, 4)
    whole.loss(pixels, labels)
    for number in range(4):
        parts.loss(pixels[number : number + 1], labels[number : number + 1])
    before = parts.table.rows_CkD.clone()
    whole.finish_step(), parts.finish_step()
    torch.testing.assert_close(parts.table.rows_CkD, whole.table.rows_CkD)
    assert not torch.equal(before, whole.table.rows_CkD)


@pytest.mark.parametrize("native", ["1", "0"])
@pytest.mark.parametrize("k", [1, 3])
def test_answers_are_those_of_the_nearest_prototype(k, native, monkeypatch):
    monkeypatch.setenv("KILOSEG_NATIVE", native)
    head = head_of(40, k)
    outputs, size = torch.randn(2, 6, 5, 6), (20, 24)
    full = F.normalize(F.interpolate(outputs, size=size, mode="bilinear", align_corners=False), dim=1)
    cosine = torch.einsum("bdhw,ckd->bckhw", full, head.table.rows_CkD).amax(2)
    best = cosine.topk(5, dim=1)
    assert torch.equal(head.predict(outputs, size), best.indices[:, 0])
    sure = head.predict_confidence(outputs, size)
    assert torch.equal(sure.labels, best.indices[:, 0])
    margin = 20.0 * (best.values[:, 0] - best.values[:, 1])
    torch.testing.assert_close(sure.confidence, margin.sigmoid(), rtol=1e-4, atol=1e-5)
    for count in (1, 2, 5):
        found = head.candidates(outputs, size, count)
        assert torch.equal(found.labels, best.indices[:, :count].transpose(0, 1))
        torch.testing.assert_close(found.logits, 20.0 * best.values[:, :count].transpose(0, 1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.familiarity, best.values[:, 0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="count = 41: expected 1 to 40"):
        head.candidates(outputs, size, 41)


def test_no_optimizer_knows_them():
    config = override(Config(), {**HEAD, "model.arch": "fpn", "model.backbone": "test_resnet"})
    segmenter = build_segmenter(config, 7)
    optimizer = build_optimizer(segmenter, config.optimizer)
    learned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert list(segmenter.head.parameters()) == [] and learned == {id(each) for each in segmenter.network.parameters()}
    assert segmenter.state_dict()["head.table.rows_CkD"].shape == (7, 10, 128)
    assert head_name(config) == "prototype"


@pytest.mark.parametrize("k", [1, 4])
def test_a_run_learns(quick, k):
    changes = {**HEAD, "model.prototypes": k, "model.embed_dim": 8, "trainer.steps": 40, "trainer.validate_every": 0}
    config = override(quick, changes | {"loss.prototype_momentum": 0.99})
    reports = []
    last = train(config, reports.append)
    untrained = train(
        override(config, {"optimizer.lr": 1e-9, "loss.prototype_momentum": 1.0, "trainer.steps": 1}), reports.append
    )
    assert last["train/loss"] < 0.5 * reports[0]["train/loss"]
    assert last["val/miou"] > 0.1 + untrained["val/miou"]


def test_a_resumed_run_ends_as_if_it_had_never_stopped(quick, tmp_path):
    changes = {**HEAD, "model.prototypes": 3, "trainer.keep_checkpoints": 9, "loss.prototype_momentum": 0.9}
    config = override(quick, changes)
    last = train(config, lambda report: None)
    halfway = load_checkpoint(tmp_path / "train" / "step-00000004.pt")["model"]["head.table.rows_CkD"]
    elsewhere = override(config, {"trainer.output": str(tmp_path / "other")})
    again = train(elsewhere, lambda report: None, resume=tmp_path / "train" / "step-00000004.pt")
    first, second = (load_segmenter(each["checkpoint"])[0] for each in (last, again))
    assert torch.equal(first.head.table.rows_CkD, second.head.table.rows_CkD)
    assert not torch.equal(first.head.table.rows_CkD, halfway), "prototypes went on moving"
    assert last["val/miou"] == again["val/miou"] and last["train/loss"] == again["train/loss"]
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = first.predict(images)
    assert torch.equal(labels, copy.deepcopy(first).predict(images)) and labels.max() < first.num_classes


def test_memory_of_a_step_grows_with_the_tables_alone():
    """As planned: from 100 to 10,000 classes, a few times the prototypes, and next to nothing of pixels times classes."""
    small = override(
        Config(),
        {**HEAD, "model.arch": "fpn", "model.backbone": "test_resnet", "model.embed_dim": 16, "data.crop": 128,
         "trainer.batch_size": 8},
    )  # fmt: skip
    for k in (1, 4):
        config = override(small, {"model.prototypes": k})
        growth = (plan(config, num_classes=10_000) - plan(config, num_classes=100)) * 2**30
        table = 9_900 * k * 16 * 4
        assert growth < 8 * table + 4 * 2**20
        scores = 8 * 128 * 128 * 9_900 * 4
        assert growth < scores / 100


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "loss.negatives.kind",
            "random",
            "loss.negatives.kind = 'random': expected 'all' for model.head = 'prototype'",
        ),
        ("loss.logit", "distance", "loss.logit = 'distance': expected 'cosine' for model.head = 'prototype'"),
        ("loss.separation_weight", 1.0, "loss.separation_weight = 1.0: expected 0.0 for model.head = 'prototype'"),
    ],
)
def test_what_the_head_cannot_use_is_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        override(Config(), {**HEAD, name: value})
    override(override(Config(), {name: value}), HEAD)
