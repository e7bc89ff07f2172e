"""The loss by scores at feature cells against the dense formula in float64, for any factor of upsampling."""

import pytest
import torch
import torch.nn.functional as F
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


def peaked(C, D, cosine):
    """Pixels that lie near their own class, as a trained model's, in regions of 4 x 4 cells."""
    generator = torch.Generator().manual_seed(2)
    table = torch.randn(C, D, generator=generator)
    labels = torch.randint(C, (2, 3, 3), generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
    rows = F.normalize(table, dim=1)[labels[:, 2::4, 2::4]]
    away = F.normalize(torch.randn(rows.shape, generator=generator), dim=-1)
    pixels = (cosine * rows + (1 - cosine**2) ** 0.5 * away).permute(0, 3, 1, 2).contiguous()
    return pixels.requires_grad_(), table.requires_grad_(), labels


@pytest.mark.parametrize("tau", [20.0, 60.0])
@pytest.mark.parametrize("logit", LOGITS)
def test_filter_leaves_out_no_more_than_negligible_weights(logit, tau, monkeypatch):
    """Class by class, what is missing is at most the part of the pixels in which the class has less than 2^-12."""
    monkeypatch.setattr(cpu_cells, "BLOCK_CELLS", 30)
    pixels, table, labels = inputs = peaked(300, 128, 0.95)
    exact = compute(*inputs, "all", logit, tau=tau)
    filtered = compute(*inputs, "all", logit, tau=tau, filter_gradients=True)
    assert torch.equal(filtered[0], exact[0])
    with torch.no_grad():
        o = F.normalize(F.interpolate(pixels.double(), labels.shape[1:], mode="bilinear"), dim=1).permute(0, 2, 3, 1)
        cosine = o @ F.normalize(table.double(), dim=1).T
        distance = (2 - 2 * cosine).clamp(min=1e-7).sqrt()
        share = (tau * cosine if logit == "cosine" else -tau * distance).softmax(3)
        slope = torch.ones_like(distance) if logit == "cosine" else 1 / distance
        others = torch.arange(300) != labels[..., None]
        negligible = (share * slope * (share < 2**-12) * others).flatten(0, 2).sum(0) * tau / labels.numel()
        most = negligible / table.norm(dim=1)
        missing = (filtered[2] - exact[2]).norm(dim=1)
    assert (missing <= most * 1.001 + 1e-6 * exact[2].norm(dim=1).max()).all()
    assert (missing > 0.1 * most).any(), "next to nothing was left out"


@pytest.mark.parametrize("logit", LOGITS)
def test_filter_changes_nothing_where_no_weight_is_negligible(logit, monkeypatch):
    monkeypatch.setattr(cpu_cells, "BLOCK_CELLS", 30)
    pixels, table, labels = batch(130, 12, size=(40, 37), cells=(11, 10))
    exact = compute(pixels, table, labels, "all", logit, tau=1.0)
    expect(compute(pixels, table, labels, "all", logit, tau=1.0, filter_gradients=True), exact, 1e-6)


@pytest.mark.parametrize("logit", LOGITS)
def test_filter_gives_the_same_bits_on_any_number_of_threads(logit):
    inputs = peaked(300, 32, 0.7)
    first = compute(*inputs, "random", logit, count=200, filter_gradients=True)
    for number in (2, 5):
        with threads(number):
            other = compute(*inputs, "random", logit, count=200, filter_gradients=True)
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True)), number
