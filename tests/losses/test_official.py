"""The paper's loss as its code has it, against the same written out pixel by pixel."""

import math

import pytest
import torch
import torch.nn.functional as F

from kiloseg.config import Config
from kiloseg.losses import Negatives, embedding_cross_entropy, official_cross_entropy
from kiloseg.models import build_segmenter
from kiloseg.models.heads import head_class
from kiloseg.overrides import head_overrides, override

pytestmark = pytest.mark.usefixtures("one_thread")

C, D, K, TAU = 9, 5, 4, 20.0


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, D, 4, 3, generator=generator).requires_grad_()
    table = torch.randn(C, D, generator=generator).requires_grad_()
    labels = torch.randint(-1, C, (2, 13, 10), generator=generator)
    return pixels, table, labels


def by_hand(pixels, table, labels):
    """Upsamples unit vectors, then for each pixel ranks all classes and takes the K nearest as the code does."""
    o = F.interpolate(F.normalize(pixels.double(), dim=1), labels.shape[1:], mode="bilinear", align_corners=False)
    rows = F.normalize(table.double(), dim=1)
    losses = []
    for b, y, x in (labels >= 0).nonzero().tolist():
        target = int(labels[b, y, x])
        distances = (o[b, :, y, x] - rows).norm(dim=1)
        order = distances.argsort().tolist()
        faulty = [max(c - 1, 0) if c == target else c for c in order[:K]]
        logits = -TAU * distances[[target, *faulty]]
        losses.append(-logits.log_softmax(0)[0])
    return torch.stack(losses).mean()


def test_loss_and_gradients_are_those_of_the_formula(batch):
    pixels, table, labels = batch
    expected = by_hand(pixels, table, labels)
    loss = official_cross_entropy(pixels, table, labels, count=K, temperature=TAU)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    inputs = (pixels, table)
    for mine, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_class_0_is_its_own_negative():
    """Where a pixel sits on class 0, the fault leaves the loss at log 2 or more."""
    table = torch.eye(4)
    pixels = table[0].view(1, 4, 1, 1).expand(1, 4, 2, 2).contiguous()
    labels = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert official_cross_entropy(pixels, table, labels, count=2).item() >= math.log(2)


def test_equals_ours_without_upsampling_where_the_own_class_is_not_among_the_nearest():
    """Without upsampling it does not matter when pixels are normalized; farthest classes as labels are never replaced."""
    generator = torch.Generator().manual_seed(0)
    pixels, table = torch.randn(1, D, 6, 5, generator=generator), torch.randn(C, D, generator=generator)
    labels = torch.einsum("bdhw,cd->bchw", pixels, F.normalize(table, dim=1)).argmin(1)
    nearest = Negatives(kind="nearest", count=K)
    ours = embedding_cross_entropy(pixels, table, labels, negatives=nearest, logit="distance")
    theirs = official_cross_entropy(pixels, table, labels, count=K)
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-5)


def test_nothing_labeled_gives_0_and_no_gradient(batch):
    pixels, table, labels = batch
    loss = official_cross_entropy(pixels, table, torch.full_like(labels, -1), count=K)
    loss.backward()
    assert loss.item() == 0 and not pixels.grad.any() and not table.grad.any()


def test_a_run_takes_it_by_name(batch):
    pixels, table, labels = batch
    config = override(Config(), {**head_overrides("official"), "loss.negatives.count": K})
    made = head_class(config.model.head)(override(config, {"model.embed_dim": D}).model, config.loss, C)
    made.table.rows_CD = torch.nn.Parameter(table.detach())
    cross_entropy, regularizer = made.loss(pixels, labels)
    expected = by_hand(pixels, table, labels)
    assert cross_entropy.item() == pytest.approx(expected.item(), rel=1e-5)
    assert regularizer is not None
    made.settings = override(config, {"loss.separation_weight": 0.0}).loss
    assert made.loss(pixels, labels).regularizer is None


@pytest.mark.parametrize("early", [False, True])
def test_embeddings_are_unit_vectors_early_only_if_asked(early):
    model = {"model.arch": "fpn", "model.backbone": "test_resnet", "model.normalize_early": early}
    segmenter = build_segmenter(override(Config(), model), C, torch.device("cpu"))
    outputs = segmenter(torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8))
    lengths = outputs.norm(dim=1)
    assert torch.allclose(lengths, torch.ones_like(lengths), atol=1e-5) == early


@pytest.mark.parametrize(("name", "value"), [("loss.negatives.kind", "all"), ("loss.logit", "cosine")])
def test_settings_it_does_not_have_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} = .*for model.head = 'official'"):
        override(Config(), {**head_overrides("official"), name: value})
