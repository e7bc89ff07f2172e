"""Losses of prototypes against formulas written out here in float64, and assignments against a transport by hand."""

import pytest
import torch
import torch.nn.functional as F

from kiloseg.losses import assign_prototypes, prototype_cross_entropy, prototype_terms

pytestmark = pytest.mark.usefixtures("one_thread")

C, D = 9, 5
WEIGHTS = torch.arange(1, C + 1) / 3


@pytest.fixture(params=["compiled", "by torch"])
def path(request, monkeypatch):
    monkeypatch.setenv("KILOSEG_NATIVE", "1" if request.param == "compiled" else "0")


def batch(k, dtype=torch.float64, size=(13, 10), cells=(4, 3)):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(2, D, *cells, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    rows = F.normalize(torch.randn(C, k, D, generator=generator, dtype=torch.float64), dim=2).to(dtype)
    return pixels, rows, torch.randint(-1, C, (2, *size), generator=generator)


def reference(pixels, rows, labels, temperature, weights):
    """All scores at full resolution; the mean of torch's own cross-entropy."""
    o = F.normalize(F.interpolate(pixels, size=labels.shape[1:], mode="bilinear", align_corners=False), dim=1)
    scores = torch.stack([torch.einsum("bdhw,cd->bchw", o, rows[:, j]) for j in range(rows.shape[1])]).amax(0)
    return F.cross_entropy(temperature * scores, labels, weight=weights, ignore_index=-1)


def value_and_gradient(loss, pixels):
    return loss.detach().double(), torch.autograd.grad(loss, pixels, retain_graph=True)[0].double()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("tile_bytes", [1, 3000, None])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
@pytest.mark.parametrize("k", [1, 2, 10])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_cross_entropy_equals_the_dense_formula(k, weights, tile_bytes, dtype, tolerance):
    pixels, rows, labels = batch(k, dtype)
    arguments = {"temperature": 7.0, "class_weights_C": weights, "tile_bytes": tile_bytes}
    ours = value_and_gradient(prototype_cross_entropy(pixels, rows, labels, **arguments), pixels)
    wide = pixels.detach().double().requires_grad_()
    weights = None if weights is None else weights.double()
    expected = value_and_gradient(reference(wide, rows.double(), labels, 7.0, weights), wide)
    for mine, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, want, rtol=tolerance, atol=tolerance)


def test_prototypes_are_normalized_and_get_no_gradient():
    pixels, rows, labels = batch(3)
    longer = (rows * torch.rand(C, 3, 1).add(0.5)).requires_grad_()
    loss = prototype_cross_entropy(pixels, longer, labels)
    torch.testing.assert_close(loss, prototype_cross_entropy(pixels, rows, labels))
    (loss + sum(prototype_terms(pixels, longer, labels)[:2])).backward()
    assert longer.grad is None and pixels.grad is not None


@pytest.mark.parametrize("k", [1, 4])
def test_batch_without_labels(k):
    pixels, rows, labels = batch(k)
    nothing = torch.full_like(labels, -1)
    terms = prototype_terms(pixels, rows, nothing)
    assert (terms.row_Bhw == -1).all()
    loss = prototype_cross_entropy(pixels, rows, nothing) + terms.contrast + terms.distance
    value, gradient = value_and_gradient(loss, pixels)
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("weights", [None, WEIGHTS.double()], ids=["equal", "weighted"])
def test_terms_equal_their_formulas(k, weights):
    """Every cell has the label of the pixel at its center, which is known here: the labels are those of cells, enlarged."""
    pixels, rows, _ = batch(k)
    cells = torch.randint(-1, C, (2, 4, 3), generator=torch.Generator().manual_seed(5))
    labels = cells.repeat_interleave(4, 1).repeat_interleave(4, 2)
    terms = prototype_terms(pixels, rows, labels, temperature=7.0, class_weights_C=weights)
    known = cells >= 0
    assert torch.equal(terms.row_Bhw >= 0, known) and torch.equal(terms.row_Bhw[known] // k, cells[known])
    o = F.normalize(pixels, dim=1).permute(0, 2, 3, 1)[known]
    cosine = o @ rows.flatten(0, 1).T
    of_row = None if weights is None else weights.repeat_interleave(k)
    contrast = F.cross_entropy(7.0 * cosine, terms.row_Bhw[known], weight=of_row)
    own = cosine.gather(1, terms.row_Bhw[known][:, None])[:, 0]
    share = torch.ones_like(own) if weights is None else weights[cells[known]]
    distance = (share * (1 - own) ** 2).sum() / share.sum()
    for mine, want in ((terms.contrast, contrast), (terms.distance, distance)):
        for got, expected in zip(value_and_gradient(mine, pixels), value_and_gradient(want, pixels), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


def transported(units, rows, labels):
    """Sinkhorn's iterations class by class, with marginals that are written out."""
    found = torch.full_like(labels, -1)
    for label in range(C):
        mine = labels == label
        if not mine.any():
            continue
        plan = torch.exp(units[mine].double() @ rows[label].double().T / 0.05)
        plan /= plan.sum()
        count, k = plan.shape
        for _ in range(3):
            plan *= (1 / k) / plan.sum(0)
            plan *= ((1 / count) / plan.sum(1))[:, None]
        found[mine] = plan.argmax(1)
    return found


def test_assignment_is_the_transport_of_each_class():
    generator = torch.Generator().manual_seed(2)
    units = F.normalize(torch.randn(500, D, generator=generator, dtype=torch.float64), dim=1)
    rows = F.normalize(torch.randn(C, 4, D, generator=generator, dtype=torch.float64), dim=2)
    labels = torch.randint(-1, C, (500,), generator=generator)
    labels[labels == 3] = 4  # a class without pixels
    found = assign_prototypes(units, rows, labels)
    known = labels >= 0
    assert torch.equal(found[known], transported(units, rows, labels)[known])
    assert (assign_prototypes(units, rows[:, :1], labels) == 0).all()


def test_prototypes_share_the_pixels_of_their_class():
    """All pixels are nearer to the first of two prototypes; those that are nearest to it get it, the others the second."""
    angles = torch.linspace(0.2, 0.6, 40, dtype=torch.float64)
    units = torch.stack([angles.cos(), angles.sin()], dim=1)
    rows = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    found = assign_prototypes(units, rows, torch.zeros(40, dtype=torch.int64))
    assert 16 <= found.sum() <= 24
    assert torch.equal(found, found.sort().values)


def test_shapes_that_do_not_match_are_refused():
    pixels, rows, labels = batch(2)
    with pytest.raises(ValueError, match=r"prototypes of shape \(9, 5\): expected \(C, k, D\)"):
        prototype_cross_entropy(pixels, rows[:, 0], labels)
    with pytest.raises(ValueError, match=r"with a table of shape \(9, 4\): expected \(B, D, h, w\) and \(C, D\)"):
        prototype_cross_entropy(pixels, rows[:, :, :4], labels)
    with pytest.raises(ValueError, match="labels hold class id 9: expected 0 to 8, or -1 for ignore"):
        prototype_cross_entropy(pixels, rows, labels.clamp(min=C))
