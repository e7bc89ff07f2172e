"""A step in parts: gradients of micro-batches sum up to those of the whole batch; test_train.py has those of two workers."""

import pytest
import torch
from conftest import quick_run
from test_train import PerPixel, stepped, uneven_batch

from kiloseg.config import Negatives
from kiloseg.memory import largest_batch, plan
from kiloseg.overrides import override
from kiloseg.training.loop import train
from kiloseg.training.step import training_step

CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])


class Weighted(PerPixel):
    def __init__(self, loss):
        super().__init__(loss)
        self.head.weigh_classes(CLASS_WEIGHTS)


@pytest.mark.parametrize("network", [PerPixel, Weighted])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_parts_of_a_batch_give_the_step_of_the_whole(quick, network, size):
    """Parts of unequal size and with unequal numbers of labeled pixels."""
    whole = stepped(network(quick.loss), uneven_batch(), quick, 1)
    parts = stepped(network(quick.loss), uneven_batch(), override(quick, {"trainer.micro_batch_size": size}), 1)
    for mine, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_the_regularizer_counts_once(quick):
    config = override(quick, {"loss.separation_weight": 10.0, "loss.separation_margin": 2.0})
    whole = stepped(PerPixel(config.loss), uneven_batch(), config, 1)
    parts = stepped(PerPixel(config.loss), uneven_batch(), override(config, {"trainer.micro_batch_size": 1}), 1)
    for mine, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_a_part_without_labels_changes_nothing(quick):
    images, labels = uneven_batch()
    labels[2:] = -1
    first = stepped(PerPixel(quick.loss), (images[:2], labels[:2]), quick, 1)
    config = override(quick, {"trainer.micro_batch_size": 1})
    for mine, expected in zip(stepped(PerPixel(quick.loss), (images, labels), config, 1), first, strict=True):
        torch.testing.assert_close(torch.tensor(mine), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    nothing = torch.full_like(labels, -1)
    model = PerPixel(quick.loss)
    loss = training_step(config, model, torch.optim.SGD(model.parameters(), lr=1.0), images, nothing)
    assert loss == 0 and all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_batch_beyond_memory_fits_in_parts(quick, tmp_path):
    """What is planned is what is measured, and most of it no longer grows with the batch."""
    large = override(quick, {"trainer.batch_size": 16, "trainer.steps": 2, "trainer.validate_every": 0})
    parts = override(large, {"trainer.micro_batch_size": 2, "trainer.output": str(tmp_path / "parts")})
    measured = train(parts, lambda report: None)["peak_memory_gib"]
    assert plan(parts, num_classes=6) == pytest.approx(measured, rel=0.05)
    assert plan(parts, num_classes=6) < 0.8 * plan(large, num_classes=6)
    budget = plan(large, num_classes=6)
    assert largest_batch(parts, budget, num_classes=6) > 2 * largest_batch(large, budget, num_classes=6)


def test_random_negatives_are_drawn_for_each_part(squares, tmp_path):
    config = override(
        quick_run(squares, tmp_path / "train"), {"loss.negatives.kind": "random", "loss.negatives.count": 2}
    )
    assert config.loss.negatives == Negatives(kind="random", count=2)
    last = train(override(config, {"trainer.micro_batch_size": 3, "trainer.steps": 2}), lambda report: None)
    assert 0 <= last["val/miou"] <= 1
