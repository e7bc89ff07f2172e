"""The kernels against dense formulas in float64, and the whole loss through them against its path without."""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from triton_process import answers_of, compiled_for_h100

from kiloseg.losses import Negatives, embedding_cross_entropy, triton_backend
from kiloseg.losses.negatives import resolve_negatives
from kiloseg.ops.triton import available

pytest.importorskip("triton")

LOGITS = ("distance", "cosine")

pytestmark = pytest.mark.usefixtures("one_thread")

SOFTMAX = {
    f"{logit} C{C} D{D} tau{tau}": (P, C, D, tau, logit)
    for logit in LOGITS
    for P, C, D, tau in [(150, 19, 6, 20.0), (70, 150, 12, 60.0), (129, 33, 64, 20.0), (40, 70, 128, 20.0)]
}
SOFTMAX["distance C1284 D12 tau20"] = (40, 1284, 12, 20.0, "distance")
NEAREST = {f"C{C} D{D} K{K}": (P, C, D, K) for P, C, D, K in [(70, 19, 6, 18), (65, 150, 12, 8), (30, 70, 64, 33)]}


def unit(count, D, generator):
    return F.normalize(torch.randn(count, D, generator=generator), dim=1)


def softmax_case(P, C, D, tau, logit):
    """Pixels, classes, targets, factors of pixels, tau and whether it is cosine; pixel i lies exactly on class i for i < 4."""
    generator = torch.Generator().manual_seed(C + D)
    o, e = unit(P, D, generator), unit(C, D, generator)
    o[:4], e[:4] = torch.eye(4, D), torch.eye(4, D)
    target = torch.randint(C, (P,), generator=generator)
    target[:4] = torch.tensor([0, 2, 1, C - 1])
    target[4] = -1  # leaves out nothing
    factor = torch.rand(P, generator=generator)
    factor[7] = 0  # does not count
    return o, e, target, factor, tau, logit == "cosine"


def nearest_case(P, C, D, K):
    generator = torch.Generator().manual_seed(C)
    o, e = unit(P, D, generator), unit(C, D, generator)
    e[1] = e[0]  # equally near to everything
    o[:4] = e[[0, 0, 1, 5]]
    target = torch.randint(C, (P,), generator=generator)
    target[:4] = torch.tensor([0, 2, 1, 5])
    target[4] = -1
    return o, e, target, K


def loss_case(kind, logit, tau, C):
    """Several blocks of rows, one that ends within a block of pixels, ignored pixels, a class that a whole stretch has."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(2, 12, 4, 3, generator=generator)
    table = torch.randn(C, 12, generator=generator)
    labels = torch.randint(-1, C, (2, 9, 10), generator=generator)
    labels[0, :4] = 2
    return pixels, table, labels, kind, logit, tau


LOSS = {
    f"{kind} {logit} tau{tau}": (kind, logit, tau, 40)
    for kind, logit, tau in [
        ("all", "distance", 20.0),
        ("all", "cosine", 20.0),
        ("all", "distance", 60.0),
        ("random", "cosine", 20.0),
        ("random", "distance", 60.0),
        ("nearest", "distance", 20.0),
        ("nearest", "cosine", 60.0),
        ("mixed", "distance", 20.0),
    ]
}


def sums_and_gradient(o, e, target, factor, tau, cosine):
    from kiloseg.ops.triton.softmax import softmax_sums, softmax_table_gradient

    # High enough for the first pixels that it is their top, too low for the last.
    floor = -4.0 * torch.arange(len(o), device=o.device)
    sums, row_sums, top = softmax_sums(o, e, target, tau, cosine=cosine, floor_P=floor)
    alone = softmax_sums(o, e, target, tau, cosine=cosine, wants_row_sums=False)
    grad = softmax_table_gradient(o, e, target, factor, top, tau, cosine=cosine)
    return {"sums": sums, "row_sums": row_sums, "top": top, "grad": grad, "alone": alone}


def nearest_and_rows(o, e, target, K):
    from kiloseg.ops.triton.nearest import nearest_scores
    from kiloseg.ops.triton.rows import add_weighted_rows, weighted_rows

    cosines, ids = nearest_scores(o, e, target, K)
    row_sums = weighted_rows(cosines, e, ids)
    grad = torch.ones_like(e)
    add_weighted_rows(grad, cosines, o, ids)
    return {"cosines": cosines, "ids": ids, "row_sums": row_sums, "grad": grad}


def loss_and_gradients(pixels, table, labels, kind, logit, tau):
    torch.manual_seed(5)
    pixels, table = pixels.clone().requires_grad_(), table.clone().requires_grad_()
    negatives = Negatives(kind=kind, count=6)
    loss = embedding_cross_entropy(pixels, table, labels, negatives=negatives, temperature=tau, logit=logit)
    loss.backward()
    return {"loss": loss.detach(), "pixels": pixels.grad, "table": table.grad}


def loss_by_kernels(*args):
    """`loss_and_gradients` in blocks of seven rows, and how often each kernel's function was called."""
    counts = {}
    for module, name in [("softmax", "softmax_sums"), ("nearest", "nearest_scores")]:
        module = importlib.import_module(f"kiloseg.ops.triton.{module}")
        setattr(module, name, counted(getattr(module, name), counts))
    triton_backend.BLOCK_BYTES = 7 * 10 * 12 * 4
    return {**loss_and_gradients(*args), "counts": counts}


def counted(function, counts):
    function = getattr(function, "__wrapped__", function)

    def count(*args, **kwargs):
        counts[function.__name__] = counts.get(function.__name__, 0) + 1
        return function(*args, **kwargs)

    count.__wrapped__ = function
    return count


def cases():
    yield from ((f"softmax {name}", "sums_and_gradient", softmax_case(*case)) for name, case in SOFTMAX.items())
    yield from ((f"nearest {name}", "nearest_and_rows", nearest_case(*case)) for name, case in NEAREST.items())
    yield from ((f"loss {name}", "loss_by_kernels", loss_case(*case)) for name, case in LOSS.items())


FEW = {"softmax": "cosine C33 D64 tau20.0", "nearest": "C19 D6 K18", "loss": "all distance tau60.0"}
"""The cases that `make test` computes; the interpreter takes half a minute for all of them."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return answers_of("test_triton", tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    names = [f"{kind} {name}" for kind, name in FEW.items()]
    return answers_of("test_triton", tmp_path_factory.mktemp("triton"), names)


def test_a_few_cases(few):
    """A softmax, a search for nearest negatives and a loss, each as in its own test."""
    test_softmax_equals_dense_formula(FEW["softmax"], few)
    test_nearest_is_exact_up_to_ties(FEW["nearest"], few)
    test_whole_loss_equals_the_path_without_kernels(FEW["loss"], few)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_equals_dense_formula(name, answers):
    o, e, target, factor, tau, cosine = softmax_case(*SOFTMAX[name])
    answer = answers[f"softmax {name}"]
    products = o.double() @ e.double().T
    if cosine:
        z, slope = tau / math.log(2) * (products - 1), torch.ones_like(products)
    else:
        distance = tau / math.log(2) * (2 - 2 * products).clamp(min=1e-7).sqrt()
        z, slope = -distance, 1 / distance
    listed = torch.arange(len(e)) == target[:, None]
    z[listed] = -math.inf
    if tau > 40:
        floor = -4.0 * torch.arange(len(o))
        torch.testing.assert_close(answer["top"].double(), torch.maximum(z.amax(1), floor), rtol=1e-5, atol=1e-5)
        z = z - answer["top"].double()[:, None]
    else:
        assert answer["top"] is None
    w = z.exp2()
    # An error of a logit, which grows with tau, is a relative one of a weight: float32 has 6e-8 of 2 tau log2(e).
    tolerance = 5e-7 * tau
    torch.testing.assert_close(answer["sums"].double(), w.sum(1), rtol=tolerance, atol=0)
    scaled = factor.double()[:, None] * w * slope
    for got, want, size in [
        (answer["row_sums"], (w * slope) @ e.double(), (w * slope) @ e.double().abs()),
        (answer["grad"], scaled.T @ o.double(), scaled.T @ o.double().abs()),
    ]:
        assert got.shape == want.shape
        assert ((got.double() - want).abs() <= tolerance * size + 1e-30).all()
    # Without a floor the top is a pixel's largest logit, and sums are relative to that.
    sums, row_sums, top = answer["alone"]
    assert row_sums is None
    if tau > 40:
        assert (sums >= 1).all()
        shift = (top - answer["top"]).exp2()
        torch.testing.assert_close(sums * shift, answer["sums"], rtol=1e-5, atol=0)
    else:
        assert torch.equal(sums, answer["sums"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAREST)
def test_nearest_is_exact_up_to_ties(name, answers):
    o, e, target, K = nearest_case(*NEAREST[name])
    answer = answers[f"nearest {name}"]
    products = o.double() @ e.double().T
    products[torch.arange(len(e)) == target[:, None]] = -math.inf
    ids = answer["ids"]
    assert ids.dtype == torch.int64
    assert all(len(set(row)) == K for row in ids.tolist())
    torch.testing.assert_close(answer["cosines"].double(), products.gather(1, ids), rtol=0, atol=3e-7)
    highest = products.topk(K, dim=1).values
    torch.testing.assert_close(answer["cosines"].double().sort(1, descending=True).values, highest, rtol=0, atol=3e-7)
    weight = answer["cosines"].double()
    torch.testing.assert_close(answer["row_sums"].double(), (weight[:, :, None] * e[ids]).sum(1), rtol=0, atol=1e-5)
    grad = torch.ones(e.shape, dtype=torch.float64)
    grad.index_add_(0, ids.flatten(), (weight[:, :, None] * o[:, None]).flatten(0, 1))
    torch.testing.assert_close(answer["grad"].double(), grad, rtol=0, atol=1e-5)


KERNELS = {
    "sums": (
        "softmax._sums",
        {"COSINE": False, "ONLINE": False, "ROW_SUMS": True, "floor_ptr": None, "top_ptr": None},
    ),
    "sums of cosines": (
        "softmax._sums",
        {"COSINE": True, "ONLINE": False, "ROW_SUMS": True, "floor_ptr": None, "top_ptr": None},
    ),
    "online": ("softmax._sums", {"COSINE": True, "ONLINE": True, "ROW_SUMS": True}),
    "gradient": ("softmax._table_gradient", {"COSINE": False, "ONLINE": False, "top_ptr": None}),
    "gradient of cosines": ("softmax._table_gradient", {"COSINE": True, "ONLINE": False, "top_ptr": None}),
    "nearest": ("nearest._nearest", {"K": 8, "SLOTS": 8}),
}
"""Kernels with products, and what their calls fix besides sizes."""


@pytest.mark.parametrize(
    ("name", "D", "W"),
    [
        *((name, 12, 16) for name in KERNELS),
        ("sums", 64, 64),
        # The defaults of a run.
        ("sums of cosines", 128, 128),
        ("gradient of cosines", 128, 128),
    ],
)
def test_compiles_for_an_h100(name, D, W, tmp_path, monkeypatch):
    """Also without a GPU: what the interpreter accepts need not compile."""
    kernel, fixed = KERNELS[name]
    types = {"o_ptr": "*bf16"} if name.startswith("gradient") else {}
    compiled = compiled_for_h100(kernel, D, W, fixed, types, tmp_path, monkeypatch)
    assert "wgmma.mma_async.sync.aligned.m64" in compiled.asm["ptx"], "the products are not on the tensor cores"
    assert ".bf16.bf16" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 227 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSS)
def test_whole_loss_equals_the_path_without_kernels(name, answers):
    answer = answers[f"loss {name}"]
    kind = LOSS[name][0]
    # Two images of nine rows, in blocks of seven.
    expected = {"all": {"softmax_sums": 4}, "random": {"softmax_sums": 4}, "nearest": {"nearest_scores": 4}}
    assert answer.pop("counts") == expected.get(kind, {})
    assert not available(torch.device("cpu"))
    for part, want in loss_and_gradients(*loss_case(*LOSS[name])).items():
        torch.testing.assert_close(answer[part], want, rtol=1e-5, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize(
    ("environment", "device", "expected"),
    [
        ({}, "cpu", False),
        ({"TRITON_INTERPRET": "1"}, "cpu", True),
        ({"TRITON_INTERPRET": "1"}, "cuda", False),
        ({"TRITON_INTERPRET": "1", "KILOSEG_TRITON": "0"}, "cpu", False),
    ],
)
def test_where_kernels_run(environment, device, expected, monkeypatch):
    for name in ("TRITON_INTERPRET", "KILOSEG_TRITON"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert available(torch.device(device)) == expected


def test_tensors_that_a_kernel_cannot_read_are_named():
    from kiloseg.ops.triton.nearest import nearest_scores

    o, e, target, K = nearest_case(*next(iter(NEAREST.values())))
    with pytest.raises(ValueError, match=r"rows_CD is torch.float64 .* expected contiguous torch.float32 on cpu"):
        nearest_scores(o, e.double(), target, K)
    with pytest.raises(ValueError, match=r"o_PD is torch.float32 with strides \(1, 70\)"):
        nearest_scores(o.T.contiguous().T, e, target, K)
    with pytest.raises(ValueError, match=r"K = 19: expected 1 to 18, the number of other classes, and 64 at most"):
        nearest_scores(o, e, target, 19)


def test_what_kernels_cover():
    kinds = [("all", 8), ("random", 500), ("nearest", 64), ("nearest", 65), ("mixed", 8)]
    resolved = [resolve_negatives(Negatives(kind=kind, count=count), 1000) for kind, count in kinds]
    covered = [triton_backend.covers(negatives) for negatives in resolved]
    assert covered == [True, True, True, False, False]
