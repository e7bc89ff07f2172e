"""The loss of torch's own path by scores at feature cells against the dense formula in float64, for any factor of upsampling."""

import pytest
import torch
from dense import loss_and_gradients, reference

from kiloseg.losses import Negatives, embedding_cross_entropy, reference_cells

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = [("all", 8), ("random", 6), ("random", 2)]


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Scores are taken at cells whatever the dimension and the factor of upsampling, without kernels; how often they were."""
    counted = []
    embedding_loss = reference_cells.embedding_loss
    monkeypatch.setenv("KILOSEG_NATIVE", "0")
    monkeypatch.setattr(reference_cells, "pays", lambda *_: True)
    monkeypatch.setattr(reference_cells, "embedding_loss", lambda *a: counted.append(1) or embedding_loss(*a))
    yield counted
    assert counted


def batch(dtype=torch.float64, size=(13, 10), cells=(4, 3), C=9, D=5):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, D, *cells, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    table = torch.randn(C, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return pixels, table, torch.randint(-1, C, (2, *size), generator=generator)


def compute(pixels, table, labels, kind, count, logit, tau=7.0, tile_bytes=None):
    torch.manual_seed(3)
    negatives = Negatives(kind=kind, count=count)
    return loss_and_gradients(
        lambda: embedding_cross_entropy(
            pixels, table, labels, negatives=negatives, temperature=tau, logit=logit, tile_bytes=tile_bytes
        ),
        pixels,
        table,
    )


def expect_dense(pixels, table, labels, kind, count, logit, tau=7.0, tolerance=1e-9):
    wide = [tensor.detach().double().requires_grad_() for tensor in (pixels, table)]
    torch.manual_seed(3)
    expected = loss_and_gradients(lambda: reference(*wide, labels, kind, count, tau, logit), *wide)
    for got, want in zip(compute(pixels, table, labels, kind, count, logit, tau), expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((3, 4), (12, 16)),
        ((3, 4), (13, 9)),  # no integer, and another for each axis
        ((1, 1), (5, 6)),
        ((1, 3), (4, 7)),
        ((4, 1), (9, 3)),
        ((2, 2), (70, 34)),  # more pixels between two cells than a patch may have along one axis
        ((9, 17), (36, 68)),  # several patches along both axes
        ((5, 6), (5, 6)),
        ((9, 8), (4, 5)),  # fewer pixels than cells
    ],
)
@pytest.mark.parametrize("logit", ["distance", "cosine"])
@pytest.mark.parametrize(("kind", "count"), KINDS)
def test_any_factor_of_upsampling(kind, count, logit, cells, size):
    expect_dense(*batch(size=size, cells=cells), kind, count, logit)


@pytest.mark.parametrize("logit", ["distance", "cosine"])
@pytest.mark.parametrize(("kind", "count"), KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("tau", [7.0, 60.0])
def test_logits_that_need_a_maximum(kind, count, logit, dtype, tolerance, tau):
    expect_dense(*batch(dtype), kind, count, logit, tau, tolerance)


@pytest.mark.parametrize("logit", ["distance", "cosine"])
@pytest.mark.parametrize(("kind", "count"), [("all", 90), ("random", 50)])
@pytest.mark.parametrize("tau", [7.0, 60.0])
def test_tiles_and_patches_change_rounding_only(kind, count, logit, tau, monkeypatch):
    """Weights that are kept, and computed twice in tiles of 16 candidates; patches between 1, 8 and all cells."""
    inputs = batch(size=(40, 37), cells=(11, 10), C=91)
    first = compute(*inputs, kind, count, logit, tau)
    for patch_pixels, tile_bytes in [(128, 1), (1, None), (4000, 1), (60, 30_000)]:
        monkeypatch.setattr(reference_cells, "PATCH_PIXELS", patch_pixels)
        for got, want in zip(compute(*inputs, kind, count, logit, tau, tile_bytes), first, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("logit", ["distance", "cosine"])
def test_gradcheck(logit):
    pixels, table, labels = batch(size=(4, 5), cells=(2, 2))

    def loss(pixels, table):
        return embedding_cross_entropy(
            pixels, table, labels, negatives=Negatives(kind="all"), temperature=2.0, logit=logit
        )

    assert torch.autograd.gradcheck(loss, (pixels, table))


@pytest.mark.parametrize("logit", ["distance", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pixel_of_no_length_between_opposite_cells_is_finite(logit, dtype):
    """Half-way an embedding goes through 0, where no direction is left; three columns of 5 hold nothing but rounding."""
    pixels = torch.randn(1, 64, 1, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    pixels[..., 1] = -pixels[..., 0] * (1 + torch.finfo(dtype).eps)
    table = torch.randn(70, 64, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels = torch.arange(5)[None, None]
    for tau in (20.0, 100.0):
        for values in compute(pixels.requires_grad_(), table, labels, "all", 8, logit, tau):
            assert values.isfinite().all()


def test_cells_of_any_length():
    """Neighbors a million times as long take no digits from a pixel that has nothing of them."""
    pixels, table, labels = batch(torch.float32, size=(4, 32), cells=(1, 8))
    with torch.no_grad():
        pixels[..., 4:] *= 1e9
    labels[..., 14:18] = -1  # between the two
    expect_dense(pixels, table, labels, "all", 8, "cosine", tolerance=2e-5)


def test_no_gradient_is_made_where_none_is_wanted():
    pixels, table, labels = batch()
    with torch.no_grad():
        loss = embedding_cross_entropy(pixels, table, labels, negatives=Negatives(kind="all"), temperature=7.0)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(pixels, table, labels, "all", 8, 7.0, "cosine").detach())
