"""A head is one object: a new one is a class, and what was trained before there were heads still loads."""

import pytest
import torch
import torch.nn.functional as F

from kiloseg.config import HEADS, Config, Loss, Model
from kiloseg.memory import plan
from kiloseg.models import Head, HeadLoss, Segmenter, register_head
from kiloseg.models.heads import DenseHead, EmbeddingHead, OfficialHead, PrototypeHead, head_class
from kiloseg.overrides import flatten, from_flat, head_name, head_overrides, override
from kiloseg.training.checkpoint import load_checkpoint, save_checkpoint
from kiloseg.training.evaluation import load_segmenter
from kiloseg.training.loop import train
from kiloseg.training.optimizer import build_optimizer

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Model(arch="fpn", backbone="test_resnet", embed_dim=5)


@register_head("several")
class SeveralRowsHead(Head):
    """Several embeddings a class; everything that the platform has to know about it stands here."""

    PER_CLASS = 3

    def __init__(self, model, loss, num_classes):
        super().__init__(model, loss, num_classes)
        self.rows_CkD = torch.nn.Parameter(torch.randn(num_classes, self.PER_CLASS, model.embed_dim))

    @staticmethod
    def num_outputs(model, num_classes):
        return model.embed_dim

    def logits(self, outputs, size):
        pixels = F.normalize(F.interpolate(outputs.float(), size=size, mode="bilinear"), dim=1)
        return torch.einsum("bdhw,ckd->bckhw", pixels, F.normalize(self.rows_CkD, dim=2)).amax(2)

    def loss(self, outputs, labels):
        logits = self.settings.temperature * self.logits(outputs, labels.shape[1:])
        total = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
        return HeadLoss(total / (labels >= 0).sum().clamp(min=1), None)

    def predict(self, outputs, size):
        return self.logits(outputs, size).argmax(1)

    def undecayed(self):
        return [self.rows_CkD]


def test_a_head_in_this_file_is_planned_trained_evaluated_and_loaded_again(quick):
    config = override(quick, {"model.head": "several", "trainer.steps": 1, "trainer.validate_every": 0})
    assert head_name(config) == "several" and override(Config(), head_overrides("several")).model == Model(
        head="several"
    )
    assert plan(config) > plan(override(config, {"trainer.batch_size": 4})) > 0
    reports = []
    last = train(config, reports.append)
    assert 0 < last["train/loss"] < 100 and 0 <= last["val/miou"] <= 1

    segmenter, loaded = load_segmenter(last["checkpoint"])
    assert isinstance(segmenter.head, SeveralRowsHead) and loaded == config
    start = Segmenter(config.model, segmenter.num_classes, config.loss).head.rows_CkD
    assert not torch.equal(segmenter.head.rows_CkD, start), "the step reached the head's own parameter"
    labels = segmenter.predict(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
    assert labels.shape == (2, 64, 96) and labels.dtype == torch.int64 and labels.max() < segmenter.num_classes

    groups = build_optimizer(segmenter, override(config, {"optimizer.weight_decay": 0.5}).optimizer).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay[id(segmenter.head.rows_CkD)] == 0


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match=r"a head called 'dense' exists already \(DenseHead\)"):
        register_head("dense")


def test_heads_of_the_library_are_those_that_a_config_knows():
    known = {
        "embedding": EmbeddingHead, "dense": DenseHead, "official": OfficialHead, "prototype": PrototypeHead,
        "several": SeveralRowsHead,
    }  # fmt: skip
    assert {name: head_class(name) for name in HEADS} == known


@pytest.mark.parametrize("name", ["embedding", "dense", "official"])
def test_state_of_checkpoints_from_before_there_were_heads(name):
    """Their table was the segmenter's own, under "table.rows_CD"."""
    torch.manual_seed(0)
    written = Segmenter(Model(arch="fpn", backbone="test_resnet", embed_dim=5, head=name), 7).eval()
    state = written.state_dict()
    old = {key.removeprefix("head."): value for key, value in state.items()}
    assert ("table.rows_CD" in old) == (name != "dense")
    torch.manual_seed(1)
    read = Segmenter(Model(arch="fpn", backbone="test_resnet", embed_dim=5, head=name), 7).eval()
    read.load_state_dict(old)
    assert all(torch.equal(state[key], value) for key, value in read.state_dict().items())
    assert ("table.rows_CD" in old) == (name != "dense"), "the caller's own is left alone"


def test_a_checkpoint_of_the_papers_formula_is_a_checkpoint_of_its_head(tmp_path):
    torch.manual_seed(0)
    config = override(Config(model=SMALL), {**head_overrides("official"), "loss.negatives.count": 4})
    segmenter = Segmenter(config.model, 7, config.loss)
    flat = {**flatten(config), "model.head": "embedding", "loss.formula": "official"}
    old = {key.removeprefix("head."): value for key, value in segmenter.state_dict().items()}
    path = save_checkpoint(tmp_path, 3, {"config": flat, "num_classes": 7, "model": old}, keep=1)
    assert "table.rows_CD" in load_checkpoint(path)["model"]
    loaded, read = load_segmenter(path)
    assert read == config and isinstance(loaded.head, OfficialHead)
    torch.testing.assert_close(loaded.head.table.rows_CD, segmenter.head.table.rows_CD)


def test_kilosegs_own_formula_of_former_versions():
    old = {**flatten(Config()), "loss.formula": "kiloseg"}
    assert from_flat(old) == Config()


def test_negatives_are_checked_where_the_number_of_classes_is_known():
    loss = override(Config(), {"loss.negatives.kind": "nearest", "loss.negatives.count": 8}).loss
    for head in (EmbeddingHead, OfficialHead):
        with pytest.raises(ValueError, match=r"loss.negatives.count = 8: 8 classes leave a pixel only 7 others"):
            head(SMALL, loss, 8)
    DenseHead(SMALL, loss, 8)


def test_undecayed_parameters_are_the_tables_alone():
    assert [tuple(p.shape) for p in EmbeddingHead(SMALL, Loss(), 7).undecayed()] == [(7, 5)]
    assert list(DenseHead(SMALL, Loss(), 7).undecayed()) == []


@pytest.mark.parametrize("logit", ["cosine", "distance"])
@pytest.mark.parametrize("head", [EmbeddingHead, OfficialHead, DenseHead])
def test_candidates_are_the_best_classes_in_order(head, logit):
    """Against all logits at full resolution; the best one is the prediction, and the first two give its confidence."""
    torch.manual_seed(0)
    model, loss = Model(embed_dim=6), Loss(logit=logit)
    made = head(model, loss, 40)
    outputs = torch.randn(2, head.num_outputs(model, 40), 5, 6)
    size = (20, 24)
    full = F.interpolate(outputs, size=size, mode="bilinear", align_corners=False)
    if made.table is None:
        logits, best = full, full.softmax(1).amax(1)
    else:
        cosine = torch.einsum("bdhw,cd->bchw", F.normalize(full, dim=1), F.normalize(made.table(), dim=1))
        ranked = cosine if logit == "cosine" else -(2 - 2 * cosine).sqrt()
        logits, best = loss.temperature * ranked, cosine.amax(1)
    for count in (1, 2, 5):
        found = made.candidates(outputs, size, count)
        expected = logits.topk(count, dim=1)
        assert torch.equal(found.labels, expected.indices.transpose(0, 1))
        torch.testing.assert_close(found.logits, expected.values.transpose(0, 1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.familiarity, best, rtol=1e-4, atol=1e-5)
    predicted = made.predict_confidence(outputs, size)
    two = made.candidates(outputs, size, 2)
    assert torch.equal(predicted.labels, two.labels[0]) and torch.equal(predicted.labels, made.predict(outputs, size))
    torch.testing.assert_close(predicted.confidence, (two.logits[0] - two.logits[1]).sigmoid())


def test_a_head_without_ranks_gives_its_prediction_alone():
    made = SeveralRowsHead(Model(embed_dim=6), Loss(), 7)
    outputs = torch.randn(1, 6, 3, 3)
    found = made.candidates(outputs, (6, 6), 1)
    assert torch.equal(found.labels[0], made.predict(outputs, (6, 6))) and found.familiarity.isnan().all()
    with pytest.raises(ValueError, match="SeveralRowsHead predicts only the best class of a pixel, not 3 classes"):
        made.candidates(outputs, (6, 6), 3)
