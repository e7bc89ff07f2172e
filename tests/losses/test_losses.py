"""Losses against dense formulas written out here in float64, with gradients by autograd."""

import math

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from dense import loss_and_gradients, reference

from kiloseg.losses import Negatives, class_separation, dense_cross_entropy, embedding_cross_entropy
from kiloseg.losses.negatives import draw_candidates, resolve_negatives
from kiloseg.ops import cpu

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["all", "nearest", "random", "mixed"]
C, D, K = 9, 5, 4


@pytest.fixture(params=["compiled", "by torch"])
def path(request, monkeypatch):
    """Both ways of computing a loss in float32."""
    monkeypatch.setenv("KILOSEG_NATIVE", "1" if request.param == "compiled" else "0")
    assert (cpu.library() is None) == (request.param == "by torch")


def batch(dtype=torch.float64, size=(13, 10), cells=(4, 3), images=2):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(images, D, *cells, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    table = torch.randn(C, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(-1, C, (images, *size), generator=generator)
    labels[0, 0, :2] = 0  # class 0 was its own negative in the official code
    return pixels, table, labels


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("logit", ["distance", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_equals_dense_reference(kind, logit, dtype, tolerance):
    pixels, table, labels = batch(dtype)
    negatives = Negatives(kind=kind, count=K)
    torch.manual_seed(3)
    ours = loss_and_gradients(
        lambda: embedding_cross_entropy(pixels, table, labels, negatives=negatives, temperature=7.0, logit=logit),
        pixels,
        table,
    )
    wide_pixels, wide_table = (tensor.detach().double().requires_grad_() for tensor in (pixels, table))
    torch.manual_seed(3)
    expected = loss_and_gradients(
        lambda: reference(wide_pixels, wide_table, labels, kind, K, 7.0, logit), wide_pixels, wide_table
    )
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("logit", ["distance", "cosine"])
@pytest.mark.parametrize("kind", ["nearest", "random", "mixed"])
def test_every_other_class_as_negative_is_the_exact_softmax(kind, logit):
    pixels, table, labels = batch()
    exact, every = (
        loss_and_gradients(
            lambda negatives=negatives: embedding_cross_entropy(
                pixels, table, labels, negatives=negatives, logit=logit
            ),
            pixels,
            table,
        )
        for negatives in (Negatives(kind="all"), Negatives(kind=kind, count=C - 1))
    )
    for got, want in zip(every, exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("kind", KINDS)
def test_target_is_never_its_own_negative(kind):
    """A pixel on its own class, all others opposite: the loss is near 0. With itself as a negative it is at least log 2."""
    table = -torch.eye(C)[:, :1].repeat(1, D) + 0.01 * torch.randn(C, D, generator=torch.Generator().manual_seed(0))
    for target in (0, C - 1):
        rows = -torch.ones(C, D) + 0.01 * table
        rows[target] = 1.0
        labels = torch.full((1, 8, 8), target)
        pixels = torch.ones(1, D, 2, 2)
        loss = embedding_cross_entropy(pixels, rows, labels, negatives=Negatives(kind=kind, count=K))
        assert loss < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile_bytes", [1, 3000, 2**20])
def test_size_of_tiles_and_blocks_changes_nothing(kind, tile_bytes, monkeypatch):
    monkeypatch.setattr("kiloseg.losses.embedding.BLOCK_BYTES", tile_bytes // 3)
    pixels, table, labels = batch()
    results = []
    for size in (tile_bytes, 5000):
        torch.manual_seed(0)
        results.append(
            loss_and_gradients(
                lambda size=size: embedding_cross_entropy(
                    pixels, table, labels, negatives=Negatives(kind=kind, count=K), tile_bytes=size
                ),
                pixels,
                table,
            )
        )
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("size", [(13, 10), (4, 3), (2, 2), (33, 64)])
def test_any_ratio_of_sizes(size):
    pixels, table, labels = batch(size=size)
    negatives = Negatives(kind="all")
    ours = loss_and_gradients(
        lambda: embedding_cross_entropy(pixels, table, labels, negatives=negatives, tile_bytes=2000), pixels, table
    )
    expected = loss_and_gradients(lambda: reference(pixels, table, labels, "all", 0, 20.0, "cosine"), pixels, table)
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("logit", ["distance", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, logit):
    pixels, table, labels = batch(size=(4, 5), cells=(2, 2), images=1)

    def loss(pixels, table):
        torch.manual_seed(0)
        return embedding_cross_entropy(
            pixels, table, labels, negatives=Negatives(kind=kind, count=K), temperature=2.0, logit=logit
        )

    assert torch.autograd.gradcheck(loss, (pixels, table))


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_pixels_change_nothing(kind):
    pixels, table, labels = batch()
    labels[:, 6:] = -1
    results = []
    for garbage in (0.0, 1e3):
        changed = pixels.detach().clone()
        changed[:, :, 3:] += garbage  # cells that only ignored pixels see
        changed.requires_grad_()
        torch.manual_seed(0)
        loss = embedding_cross_entropy(changed, table, labels, negatives=Negatives(kind=kind, count=K))
        grad_pixels, grad_table = torch.autograd.grad(loss, [changed, table])
        assert not grad_pixels[:, :, 3:].any()
        results.append((loss, grad_table))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("kind", KINDS)
def test_batch_without_labels_gives_zero(kind):
    pixels, table, labels = batch(torch.float32)
    loss = embedding_cross_entropy(pixels, table, torch.full_like(labels, -1), negatives=Negatives(kind=kind, count=K))
    loss.backward()
    assert loss == 0
    assert not pixels.grad.any()
    assert not table.grad.any()
    dense = dense_cross_entropy(pixels, torch.full_like(labels, -1))
    assert dense == 0


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("logit", ["distance", "cosine"])
def test_finite_where_a_pixel_lies_on_a_class(logit):
    table = torch.eye(D).requires_grad_()
    pixels = torch.zeros(1, D, 2, 2)
    pixels[0, 2] = 3.0
    pixels.requires_grad_()
    for label in (2, 1):
        loss = embedding_cross_entropy(
            pixels, table, torch.full((1, 8, 8), label), negatives=Negatives(kind="all"), temperature=100.0, logit=logit
        )
        gradients = torch.autograd.grad(loss, [pixels, table])
        assert all(torch.isfinite(tensor).all() for tensor in (loss, *gradients))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("logit", ["distance", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_loss_keeps_its_digits_in_float32(kind, logit):
    """Pixels on their class, the others at right angles: about exp(-20) for cosines."""
    table = torch.eye(D)
    pixels = torch.zeros(1, D, 2, 2)
    pixels[0, 1] = 2.0
    labels = torch.ones(1, 8, 8, dtype=torch.int64)
    loss = embedding_cross_entropy(
        pixels, table, labels, negatives=Negatives(kind=kind, count=D - 1), temperature=20.0, logit=logit
    )
    exponent = 20.0 if logit == "cosine" else 20.0 * math.sqrt(2)
    assert loss.item() == pytest.approx(math.log1p((D - 1) * math.exp(-exponent)), rel=1e-4)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("logit", ["distance", "cosine"])
def test_zero_embedding_is_finite(logit):
    pixels = torch.zeros(1, D, 2, 2, requires_grad=True)
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    embedding_cross_entropy(pixels, torch.eye(D), labels, negatives=Negatives(kind="all"), logit=logit).backward()
    assert torch.isfinite(pixels.grad).all()


@pytest.mark.usefixtures("path")
def test_float32_inside_autocast():
    pixels, table, labels = batch(torch.float32)
    plain = embedding_cross_entropy(pixels, table, labels, negatives=Negatives(kind="all"))
    with torch.autocast("cpu", torch.bfloat16):
        under = embedding_cross_entropy(pixels, table, labels, negatives=Negatives(kind="all"))
    assert under.dtype == torch.float32
    assert under == plain


@pytest.mark.parametrize("margin", [0.0, 0.7, 2.0])
def test_separation_equals_all_pairs(margin):
    table = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = F.normalize(table, dim=1)
    pairs = (rows[:, None] - rows).pow(2).sum(2) + 4.0 * torch.eye(40)
    expected = (margin - pairs.min(1).values.sqrt()).clamp(min=0).mean()
    loss = class_separation(table, margin=margin)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, table), torch.autograd.grad(expected, table))


@pytest.mark.parametrize("sample", [1, 7, 39])
def test_separation_of_drawn_classes(sample):
    table = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = F.normalize(table, dim=1)
    nearest = ((rows[:, None] - rows).pow(2).sum(2) + 4.0 * torch.eye(40)).min(1).values.sqrt()
    torch.manual_seed(1)
    chosen = torch.randperm(40)[:sample]
    torch.manual_seed(1)
    loss = class_separation(table, margin=0.7, sample=sample)
    expected = (0.7 - nearest[chosen]).clamp(min=0).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, table), torch.autograd.grad(expected, table))


def test_separation_of_equal_rows_is_finite():
    table = torch.ones(3, 4, requires_grad=True)
    loss = class_separation(table)
    loss.backward()
    assert loss.item() == pytest.approx(0.2)
    assert torch.isfinite(table.grad).all()


def test_dense_baseline_equals_torch():
    _, _, labels = batch()
    logits = torch.randn(2, C, 4, 3, dtype=torch.float32)
    upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(dense_cross_entropy(logits, labels), F.cross_entropy(upsampled, labels, ignore_index=-1))


def test_bad_input_is_named():
    pixels, table, labels = batch()
    every = Negatives(kind="all")
    with pytest.raises(ValueError, match=r"count = 9: 9 classes leave a pixel only 8 others; lower .* to 8"):
        embedding_cross_entropy(pixels, table, labels, negatives=Negatives(kind="nearest", count=C))
    with pytest.raises(ValueError, match=r"class id 9: expected 0 to 8, or -1"):
        embedding_cross_entropy(pixels, table, labels + 1, negatives=every)
    with pytest.raises(ValueError, match=r"torch.uint8: expected int64 of shape \(B, H, W\)"):
        embedding_cross_entropy(pixels, table, labels.byte(), negatives=every)
    with pytest.raises(ValueError, match="the same D"):
        embedding_cross_entropy(pixels, table[:, :3], labels, negatives=every)
    with pytest.raises(ValueError, match="sample = 0: expected at least 1 class"):
        class_separation(table, sample=0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        class_separation(table[:1])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("all", (True, 0, 0, 0)), ("random", (True, 8, 0, 0)), ("nearest", (False, 0, 7, 0)), ("mixed", (False, 8, 4, 3))],
)
def test_kind_and_count_are_resolved_once(kind, expected):
    negatives = resolve_negatives(Negatives(kind=kind, count=7), 9)
    assert (negatives.shares, negatives.drawn, negatives.nearest, negatives.from_drawn) == expected
    assert negatives.own == (0 if negatives.shares else 7)


def test_shared_negatives_are_those_of_the_batch_first():
    labels = torch.tensor([[4, 4, -1], [7, 2, 2]])
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = draw_candidates(6, labels, 9)
        assert len(set(drawn.tolist())) == 6
        assert set(drawn[:3].tolist()) == {2, 4, 7}
    few = [draw_candidates(2, labels, 9).tolist() for _ in range(40)]
    assert {c for drawn in few for c in drawn} == {2, 4, 7}


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_gives_the_same(kind):
    pixels, table, labels = batch()

    def loss(pixels, table):
        return embedding_cross_entropy(pixels, table, labels, negatives=Negatives(kind=kind, count=K))

    results = []
    for call in (loss, lambda *tensors: torch.utils.checkpoint.checkpoint(loss, *tensors, use_reentrant=False)):
        torch.manual_seed(0)
        value = call(pixels * 1.5, table * 1.5)
        results.append([value, *torch.autograd.grad(value, [pixels, table])])
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed)


def test_double_backward_is_refused():
    pixels, table, labels = batch()
    loss = embedding_cross_entropy(pixels, table, labels, negatives=Negatives(kind="all"))
    for function, message in ((loss, "does not require grad"), (loss**2, "once_differentiable")):
        (gradient,) = torch.autograd.grad(function, pixels, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            gradient.sum().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks at it itself
def test_compiled_code_calls_the_loss_outside_of_its_graph():
    pixels, table, labels = batch()

    def around(pixels):
        return 2 * embedding_cross_entropy(3 * pixels, table, labels, negatives=Negatives(kind="all"))

    expected = torch.autograd.grad(around(pixels), pixels)
    got = torch.autograd.grad(torch.compile(around, backend="eager")(pixels), pixels)
    torch.testing.assert_close(got, expected)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="embedding_cross_entropy"):
        torch.compile(around, backend="eager", fullgraph=True)(pixels)
