"""The loss by scores at feature cells against the dense formula in float64, for any factor of upsampling."""

import pytest
import torch
from test_cpu import LOGITS, batch, compute, expect, expect_dense, threads

from kiloseg.losses import cpu_cells


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Scores are taken at cells whatever the factor of upsampling; how often they were."""
    counted = []
    embedding_loss = cpu_cells.embedding_loss
    monkeypatch.setattr(cpu_cells, "pays", lambda *_, **__: True)
    monkeypatch.setattr(cpu_cells, "embedding_loss", lambda *a, **k: counted.append(1) or embedding_loss(*a, **k))
    yield counted
    assert counted


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((3, 4), (12, 16)),
        ((3, 4), (13, 9)),  # no integer, and another for each axis
        ((1, 1), (5, 6)),
        ((1, 3), (4, 7)),
        ((4, 1), (9, 3)),
        ((2, 2), (40, 44)),  # more pixels between two cells than are summed up at a time
        ((5, 6), (5, 6)),
        ((9, 8), (4, 5)),  # fewer pixels than cells
    ],
)
@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize(("kind", "count"), [("all", 20), ("random", 9)])
def test_any_factor_of_upsampling(kind, count, logit, cells, size):
    expect_dense(*batch(21, 5, size=size, cells=cells), kind, count, logit, 1e-5)


@pytest.mark.parametrize("C", [2, 15, 16, 17, 33, 64, 65, 130])
def test_any_number_of_classes(C):
    """Below, at and above one, two and all vectors of a panel."""
    expect_dense(*batch(C, 6), "all", C - 1)


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("count", [1, 3, 40])
def test_targets_that_are_no_candidates(count, logit):
    """More classes occur than are drawn, down to two candidates."""
    pixels, table, labels = batch(70, 19, size=(20, 24), cells=(5, 6))
    assert len(labels.unique()) > count + 2
    expect_dense(pixels, table, labels, "random", count, logit)


@pytest.mark.parametrize("block_cells", [1, 13, 768])
@pytest.mark.parametrize("tile_bytes", [1, 30_000, None])
@pytest.mark.parametrize("tau", [20.0, 60.0])
@pytest.mark.parametrize("logit", LOGITS)
def test_blocks_and_chunks_change_rounding_only(block_cells, tile_bytes, tau, logit, monkeypatch):
    pixels, table, labels = batch(200, 12, size=(40, 37), cells=(11, 10))
    first = compute(pixels, table, labels, "all", logit, tau=tau)
    monkeypatch.setattr(cpu_cells, "BLOCK_CELLS", block_cells)
    expect(compute(pixels, table, labels, "all", logit, tau=tau, tile_bytes=tile_bytes), first, 1e-5)


@pytest.mark.parametrize(("kind", "count"), [("all", 8), ("random", 5), ("random", 60)])
@pytest.mark.parametrize("logit", LOGITS)
def test_number_of_threads_changes_no_bit(kind, count, logit, monkeypatch):
    monkeypatch.setattr(cpu_cells, "BLOCK_CELLS", 30)
    pixels, table, labels = batch(150, 12, size=(80, 74), cells=(20, 19))
    first = compute(pixels, table, labels, kind, logit, count=count)
    for number in (1, 2, 5):
        with threads(number):
            other = compute(pixels, table, labels, kind, logit, count=count)
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True)), number


def test_whole_rows_and_columns_without_labels():
    pixels, table, labels = batch(21, 5, size=(16, 20), cells=(4, 5))
    labels[:, 3:9] = labels[:, :, 11:] = -1
    labels[1] = -1
    expect_dense(pixels, table, labels, "all", 20)


def test_a_pixel_of_no_length_between_opposite_cells_is_finite():
    """Between two opposite cells an embedding goes through 0, where no direction is left."""
    pixels = torch.ones(1, 4, 1, 2)
    pixels[..., 1] = -1
    pixels, table = pixels.requires_grad_(), torch.eye(4).requires_grad_()
    labels = torch.zeros(1, 1, 5, dtype=torch.int64)
    for values in compute(pixels, table, labels, "all", "cosine"):
        assert values.isfinite().all()
