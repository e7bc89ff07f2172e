"""The loss over each pixel's nearest classes, sought by scores at feature cells, against the dense formula in float64."""

import functools
import math

import pytest
import test_cpu
import torch
from dense import loss_and_gradients, reference
from test_cpu import LOGITS, batch, compute, expect, threads

from kiloseg.losses import cpu_backend
from kiloseg.ops.cpu import cells as cpu_cells
from kiloseg.ops.cpu import cells_sizes


@pytest.fixture(autouse=True)
def searches(monkeypatch):
    """The search is at cells whatever the table's size and the factor of upsampling; how often it was."""
    counted = []
    search = cpu_backend._Search
    monkeypatch.setattr(cpu_backend, "searches_at_cells", lambda batch: batch.negatives.nearest > 0)
    monkeypatch.setattr(cpu_backend, "_Search", lambda *a: counted.append(1) or search(*a))
    yield counted
    assert counted


expect_dense = functools.partial(test_cpu.expect_dense, tolerance=1e-5)


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((3, 4), (12, 16)),
        ((3, 4), (13, 9)),
        ((1, 1), (5, 6)),
        ((1, 3), (4, 7)),
        ((4, 1), (9, 3)),
        ((2, 2), (40, 44)),  # more pixels between two cells than are searched at a time
        ((5, 6), (5, 6)),
        ((9, 8), (4, 5)),
    ],
)
@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize(("kind", "count"), [("nearest", 5), ("mixed", 6)])
def test_any_factor_of_upsampling(kind, count, logit, cells, size):
    expect_dense(*batch(21, 5, size=size, cells=cells), kind, count, logit)


@pytest.mark.parametrize(("C", "K"), [(2, 1), (9, 8), (16, 1), (17, 4), (65, 2), (70, 7), (200, 1)])
def test_any_number_of_classes(C, K):
    """Below, at and above one, two and all vectors of a panel; down to every other class."""
    expect_dense(*batch(C, 6, size=(12, 16)), "nearest", K)


@pytest.mark.parametrize("K", [1, 3, 8])
@pytest.mark.parametrize("tau", [20.0, 60.0])
@pytest.mark.parametrize(("block_cells", "tile_bytes"), [(768, None), (1, 1), (13, 30_000)])
def test_equals_the_search_at_pixels(K, tau, block_cells, tile_bytes, monkeypatch):
    pixels, table, labels = batch(300, 12, size=(40, 37), cells=(11, 10))
    monkeypatch.setattr(cpu_cells, "SEARCH_CELLS", block_cells)
    found = compute(pixels, table, labels, "nearest", "cosine", tau=tau, count=K, tile_bytes=tile_bytes)
    monkeypatch.setattr(cpu_backend, "searches_at_cells", lambda batch: False)
    expect(found, compute(pixels, table, labels, "nearest", "cosine", tau=tau, count=K), 1e-6 * tau)


def test_the_largest_number_of_neighbors():
    K = cells_sizes().nearest
    expect_dense(*batch(4 * K, 12, size=(9, 12)), "nearest", K)


@pytest.mark.parametrize("kind", ["nearest", "mixed"])
def test_number_of_threads_changes_no_bit(kind, monkeypatch):
    monkeypatch.setattr(cpu_cells, "SEARCH_CELLS", 60)
    pixels, table, labels = batch(150, 12, size=(80, 74), cells=(20, 19))
    first = compute(pixels, table, labels, kind, "cosine", count=7)
    for number in (1, 2, 5):
        with threads(number):
            other = compute(pixels, table, labels, kind, "cosine", count=7)
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True)), number


def test_scores_that_rise_from_class_to_class():
    """Each class is the best so far, which is the most insertions that there can be."""
    angles = torch.linspace(math.pi, 0.1, 500)
    table = torch.stack([angles.cos(), angles.sin()], 1).requires_grad_()
    pixels = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2).contiguous().requires_grad_()
    labels = torch.full((1, 8, 8), 499)
    expect_dense(pixels, table, labels, "nearest", 8)


def test_of_equal_classes_each_counts_once():
    """Any of them may be taken, so the table's gradient is only that of the reference in sum."""
    pixels, table, labels = batch(40, 6, size=(12, 16))
    with torch.no_grad():
        table[1:30] = table[0]
    ours = compute(pixels, table, labels, "nearest", "cosine", tau=7.0, count=5)
    wide = [tensor.detach().double().requires_grad_() for tensor in (pixels, table)]
    want = loss_and_gradients(lambda: reference(*wide, labels, "nearest", 5, 7.0, "cosine"), *wide)
    ours[2], want[2] = ours[2].sum(0), want[2].sum(0)
    expect(ours, want, 1e-5)


def test_nan_stays_nan():
    pixels, table, labels = batch(150, 6, size=(12, 16))
    with torch.no_grad():
        pixels[0, :, 1, 1] = math.nan
    loss, grad_pixels, grad_table = compute(pixels, table, labels, "nearest", "cosine", count=4)
    assert loss.isnan() and grad_pixels[0].isnan().any() and grad_table.isnan().any()
    assert grad_pixels[1].isfinite().all()


def test_whole_rows_and_columns_without_labels():
    pixels, table, labels = batch(21, 5, size=(16, 20), cells=(4, 5))
    labels[:, 3:9] = labels[:, :, 11:] = -1
    labels[1] = -1
    expect_dense(pixels, table, labels, "nearest", 4)
