"""Triton's kernels for scores at feature cells against dense formulas in float64, for any factor of upsampling."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from dense import loss_and_gradients, reference
from triton_process import answers_of, compiled_for_h100

from kiloseg.losses import Negatives, embedding_cross_entropy, triton_backend, triton_cells
from kiloseg.losses.negatives import resolve_negatives
from kiloseg.models import nearest_class, nearest_two
from kiloseg.models.prediction import nearest_several
from kiloseg.ops import triton as triton_kernels

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("one_thread")

LOGITS = ("distance", "cosine")

SHAPES = [
    ((3, 4), (12, 16)),
    ((3, 4), (13, 9)),  # no integer, and another for each axis
    ((1, 1), (5, 6)),
    ((1, 3), (4, 7)),
    ((4, 1), (9, 3)),
    ((2, 2), (20, 36)),  # more pixels between two cells than a patch has along one axis
    ((5, 6), (20, 24)),  # several patches along both axes
    ((5, 6), (5, 6)),
    ((9, 8), (4, 5)),  # fewer pixels than cells
]

LOSSES = {}
"""Arguments of `batch` and `compute`."""
for cells, size in SHAPES:
    for kind, count, logit in [("all", 20, "distance"), ("random", 9, "cosine")]:
        LOSSES[f"{cells} to {size} {logit} {kind}"] = ((21, 5, size, cells, 1), (kind, count, logit, 7.0))
for C, D in [(2, 3), (63, 6), (64, 40), (65, 6), (130, 16)]:  # below, at and above one and two tiles of classes
    LOSSES[f"C{C} D{D}"] = ((C, D), ("all", 1, "cosine", 20.0))
LOSSES["every class drawn"] = ((65, 6), ("random", 64, "distance", 20.0))
for logit in LOGITS:
    for tau in (20.0, 60.0):
        LOSSES[f"tau{tau} {logit}"] = ((70, 19, (13, 9), (3, 4)), ("all", 1, logit, tau))
        # More classes occur than are drawn.
        LOSSES[f"tau{tau} {logit} outside"] = ((70, 19, (13, 9), (3, 4)), ("random", 3, logit, tau))

NEAREST = {
    f"{cells} to {size} {logit}": ((21, 5, size, cells, 2), ("nearest", 7, logit, 20.0))
    for (cells, size), logit in zip(SHAPES[:7], itertools.cycle(LOGITS))
}

SEARCHES = {f"{cells} to {size}": ((70, 5, size, cells, 1), size) for cells, size in SHAPES}
SEARCHES["C4"] = ((4, 5, (9, 11), (3, 4)), (9, 11))


def batch(C, D, size=(9, 11), cells=(3, 4), images=2):
    generator = torch.Generator().manual_seed(C + D)
    pixels = torch.randn(images, D, *cells, generator=generator)
    table = torch.randn(C, D, generator=generator)
    labels = torch.randint(-1, C, (images, *size), generator=generator)
    labels[0, 2:4] = -1
    return pixels, table, labels


def compute(pixels, table, labels, kind, count, logit, tau, **options):
    pixels, table = pixels.clone().requires_grad_(), table.clone().requires_grad_()
    torch.manual_seed(3)
    negatives = Negatives(kind=kind, count=min(count, len(table) - 1))
    return loss_and_gradients(
        lambda: embedding_cross_entropy(
            pixels, table, labels, negatives=negatives, temperature=tau, logit=logit, **options
        ),
        pixels,
        table,
    )


def at_cells(*args, block_patches=2048, **options):
    """`compute` with scores at cells whatever the dimension and the factor of upsampling."""
    triton_kernels.pays_at_cells = triton_cells.pays_at_cells = lambda *_: True
    triton_kernels.BLOCK_PATCHES = block_patches
    calls = []
    embedding_loss = triton_cells.embedding_loss
    triton_cells.embedding_loss = lambda *a: calls.append(1) or embedding_loss(*a)
    results = compute(*args, **options)
    triton_cells.embedding_loss = embedding_loss
    assert calls
    return results


def nearest_at_cells(*args):
    """`compute` in blocks of seven rows, each of which is searched at cells."""
    triton_cells.pays_at_cells = lambda *_: True
    triton_backend.BLOCK_BYTES = 7 * 4 * args[0].shape[1] * args[2].shape[2]
    calls = []
    find = triton_cells.NearestSearch.find
    triton_cells.NearestSearch.find = lambda *a: calls.append(1) or find(*a)
    results = compute(*args)
    triton_cells.NearestSearch.find = find
    assert len(calls) == 2 * math.ceil(args[2].shape[1] / 7)
    return results


def in_blocks_of(block_patches, *args):
    return at_cells(*args, block_patches=block_patches)


def twice(*args):
    return [at_cells(*args), at_cells(*args)]


def weighted(pixels, table, labels, weights):
    return at_cells(pixels, table, labels, "all", 1, "cosine", 20.0, class_weights_C=weights)


def without_gradients(pixels, table, labels):
    triton_cells.pays_at_cells = lambda *_: True
    loss = embedding_cross_entropy(pixels, table, labels, negatives=Negatives(kind="all"))
    assert not loss.requires_grad
    return loss


def searched(pixels, table, size):
    triton_kernels.pays_at_cells = lambda *_: True
    labels, cosines = nearest_several(pixels, table, size=size, count=3)
    return [nearest_class(pixels, table, size=size), nearest_two(pixels, table, size=size)._asdict(), labels, cosines]


BLOCKS = ((70, 19, (24, 22), (6, 6), 3), ("random", 9, "distance", 20.0))


def class_weights():
    return torch.rand(21, generator=torch.Generator().manual_seed(1))


def opposite():
    """Between two opposite cells an embedding goes through 0, where no direction is left."""
    pixels = torch.randn(1, 64, 1, 2, generator=torch.Generator().manual_seed(0))
    pixels[..., 1] = -pixels[..., 0] * (1 + torch.finfo(torch.float32).eps)
    table = torch.randn(70, 64, generator=torch.Generator().manual_seed(1))
    return pixels, table, torch.arange(5)[None, None], "all", 1, "cosine", 20.0


def damaged():
    pixels, table, labels = batch(21, 5)
    pixels[0, :, 1, 1] = math.nan
    return pixels, table, labels, "all", 1, "cosine", 20.0


def cases():
    yield from ((f"loss {name}", "at_cells", (*batch(*one), *two)) for name, (one, two) in LOSSES.items())
    yield from ((f"nearest {name}", "nearest_at_cells", (*batch(*one), *two)) for name, (one, two) in NEAREST.items())
    yield from ((f"blocks {number}", "in_blocks_of", (number, *batch(*BLOCKS[0]), *BLOCKS[1])) for number in (1, 4, 20))
    yield "twice", "twice", (*batch(70, 19, (24, 22), (6, 6)), "all", 1, "cosine", 20.0)
    yield "weighted", "weighted", (*batch(21, 5), class_weights())
    yield "without gradients", "without_gradients", batch(21, 5)
    yield "opposite", "at_cells", opposite()
    yield "damaged", "at_cells", damaged()
    yield from ((f"search {name}", "searched", (*batch(*one)[:2], size)) for name, (one, size) in SEARCHES.items())


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return answers_of("test_triton_cells", tmp_path_factory.mktemp("triton"))


FEW = {"loss": "C65 D6", "nearest": "(3, 4) to (13, 9) cosine", "search": "C4"}
"""The cases that `make test` computes; the interpreter takes minutes for all of them."""


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    names = [f"{kind} {name}" for kind, name in FEW.items()]
    return answers_of("test_triton_cells", tmp_path_factory.mktemp("triton"), names)


def expect(got, want, tolerance):
    """Within `tolerance` of the largest value of each."""
    for one, other in zip(got, want, strict=True):
        other = other.double()
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max(), (one, other)


def dense(pixels, table, labels, kind, count, logit, tau, weights=None):
    wide = [tensor.double().requires_grad_() for tensor in (pixels, table)]
    torch.manual_seed(3)
    count = min(count, len(table) - 1)
    return loss_and_gradients(lambda: reference(*wide, labels, kind, count, tau, logit, weights), *wide)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_dense_reference(name, answers):
    one, two = LOSSES[name]
    expect(answers[f"loss {name}"], dense(*batch(*one), *two), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEAREST)
def test_loss_of_nearest_equals_dense_reference(name, answers):
    one, two = NEAREST[name]
    expect(answers[f"nearest {name}"], dense(*batch(*one), *two), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LOSSES if "tau" in name])
def test_loss_equals_that_without_triton(name, answers):
    one, two = LOSSES[name]
    expect(answers[f"loss {name}"], compute(*batch(*one), *two), 1e-5)


@pytest.mark.slow
def test_blocks_of_images_and_bands_change_rounding_only(answers):
    """An image has eight patches: a row of two, two rows, and two images at a time."""
    want = compute(*batch(*BLOCKS[0]), *BLOCKS[1])
    for number in (1, 4, 20):
        expect(answers[f"blocks {number}"], want, 1e-5)


@pytest.mark.slow
def test_equal_input_gives_equal_bits(answers):
    first, second = answers["twice"]
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.slow
def test_weights_of_classes(answers):
    weights = class_weights().double()
    expect(answers["weighted"], dense(*batch(21, 5), "all", 1, "cosine", 20.0, weights), 1e-5)


@pytest.mark.slow
def test_no_gradient_is_made_where_none_is_wanted(answers):
    want = dense(*batch(21, 5), "all", 1, "cosine", 20.0)[0]
    torch.testing.assert_close(answers["without gradients"].double(), want, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_a_pixel_of_no_length_between_opposite_cells_is_finite(answers):
    assert all(values.isfinite().all() for values in answers["opposite"])


@pytest.mark.slow
def test_nan_stays_nan(answers):
    loss, grad_pixels, grad_table = answers["damaged"]
    assert loss.isnan() and grad_pixels[0].isnan().any() and grad_table.isnan().any()


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_search_equals_brute_force(name, answers):
    one, size = SEARCHES[name]
    pixels, table, _ = batch(*one)
    upsampled = F.interpolate(pixels.double(), size, mode="bilinear", align_corners=False)
    cosines = torch.einsum("bdhw,cd->bchw", F.normalize(upsampled, dim=1), F.normalize(table.double(), dim=1))
    best, ids = cosines.topk(3, dim=1)
    clear = best[:, 0] - best[:, 1] > 1e-6
    assert clear.double().mean() > 0.9
    nearest, two, several, several_cosines = answers[f"search {name}"]
    assert torch.equal(nearest[clear], ids[:, 0][clear])
    assert torch.equal(two["labels"][clear], ids[:, 0][clear])
    assert (two["runner_up"] != two["labels"]).all()
    torch.testing.assert_close(two["cosine"].double(), best[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(two["runner_up_cosine"].double(), best[:, 1], rtol=0, atol=1e-6)
    torch.testing.assert_close(several_cosines.double(), best.movedim(1, 0), rtol=0, atol=1e-6)
    found = cosines.gather(1, several.movedim(0, 1))
    torch.testing.assert_close(found, best, rtol=0, atol=1e-6)


def test_a_few_cases(few):
    """A loss, one of nearest negatives and a search, each as in its own test."""
    test_loss_equals_dense_reference(FEW["loss"], few)
    test_loss_of_nearest_equals_dense_reference(FEW["nearest"], few)
    test_search_equals_brute_force(FEW["search"], few)


KERNELS = {
    "targets": ("cells_targets._score_targets", {"COSINE": False, "DRAWN": True}, {"rows_ptr": "*fp32"}),
    "pixels": ("cells_targets._add_pixel_gradients", {"OUTSIDE": True}, {"rows_ptr": "*fp32"}),
    "sums": ("cells_softmax._sums", {"COSINE": True, "ONLINE": False, "floor_ptr": None, "top_ptr": None}, {}),
    "online": ("cells_softmax._sums", {"COSINE": False, "ONLINE": True}, {}),
    "cells": ("cells_gradient._cells_gradient", {"COSINE": True, "ONLINE": False, "top_ptr": None}, {}),
    "candidates": ("cells_gradient._candidates_gradient", {"COSINE": True, "ONLINE": False, "top_ptr": None}, {}),
    "search": (
        "cells_search._search",
        {"K": 2, "SLOTS": 2, "COSINES": True, "EXCLUDES": False, "target_ptr": None},
        {},
    ),
    "search for a loss": ("cells_search._search", {"K": 8, "SLOTS": 8, "COSINES": True, "EXCLUDES": True}, {}),
}
"""Kernels, what their calls fix besides sizes, and types of arguments."""


@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_an_h100(name, tmp_path, monkeypatch):
    """Also without a GPU, with the defaults of a run: what the interpreter accepts need not compile."""
    kernel, fixed, types = KERNELS[name]
    compiled = compiled_for_h100(kernel, 128, 128, fixed, types, tmp_path, monkeypatch)
    assert "wgmma.mma_async.sync.aligned.m64" in compiled.asm["ptx"], "the products are not on the tensor cores"
    assert ".bf16.bf16" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 227 * 1024


def test_the_sum_of_patches_compiles_for_an_h100(tmp_path, monkeypatch):
    compiled = compiled_for_h100("cells_map._add_patches", 128, 128, {}, {}, tmp_path, monkeypatch)
    assert compiled.metadata.shared == 0


@pytest.mark.parametrize(
    ("kind", "D", "cells", "expected"),
    [
        ("all", 128, (16, 16), True),
        ("random", 33, (16, 16), True),
        ("all", 32, (16, 16), False),
        ("all", 128, (32, 32), False),
        ("nearest", 128, (16, 16), False),
        ("mixed", 128, (16, 16), False),
    ],
)
def test_where_scores_at_cells_pay(kind, D, cells, expected):
    negatives = resolve_negatives(Negatives(kind=kind, count=8), 1000)
    assert triton_cells.pays(torch.empty(2, D, *cells), (64, 64), negatives, 1000) == expected


@pytest.mark.parametrize(
    ("kind", "D", "cells", "expected"),
    [
        ("nearest", 128, (16, 16), True),
        ("nearest", 32, (16, 16), False),
        ("nearest", 128, (32, 32), False),
        ("all", 128, (16, 16), False),
    ],
)
def test_where_a_search_at_cells_pays(kind, D, cells, expected, monkeypatch):
    monkeypatch.setattr(triton_cells, "NearestSearch", lambda *_: "a search")
    negatives = resolve_negatives(Negatives(kind=kind, count=8), 1000)
    found = triton_cells.nearest_search(torch.empty(2, D, *cells), torch.empty(1000, D), (64, 64), negatives)
    assert found == ("a search" if expected else None)
