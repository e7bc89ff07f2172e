"""The compiled kernels against dense formulas in float64, and how they come to be compiled."""

import contextlib
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from dense import loss_and_gradients, reference

from kiloseg.losses import Negatives, class_separation, cpu_backend, cpu_cells, embedding_cross_entropy
from kiloseg.losses.negatives import resolve_negatives
from kiloseg.models import nearest_class, nearest_two
from kiloseg.ops import cpu
from kiloseg.ops.cpu import compiler
from kiloseg.ops.top_k import nearest_classes

ROOT = Path(__file__).parents[2]
LOGITS = ("distance", "cosine")
KINDS = {"all": 8, "nearest": 7, "random": 9, "mixed": 7}
"""Kinds of negatives, and how many."""


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process that has not looked for kernels yet, with a cache of its own."""
    monkeypatch.setenv("KILOSEG_CACHE", str(tmp_path / "cache"))
    # A quarter of the time; none of these tests computes much.
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-O0"))
    compiler._loaded.cache_clear()
    yield tmp_path / "cache"
    compiler._loaded.cache_clear()


@pytest.fixture(params=["scores at cells", "scores at pixels"])
def kernel(request, monkeypatch):
    """Both kernels for what shares candidates; the second is for all else."""
    if request.param == "scores at pixels":
        monkeypatch.setattr(cpu_cells, "pays", lambda *_, **__: False)


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def batch(C, D, size=(9, 11), cells=(3, 4), images=2):
    generator = torch.Generator().manual_seed(C + D)
    pixels = torch.randn(images, D, *cells, generator=generator).requires_grad_()
    table = torch.randn(C, D, generator=generator).requires_grad_()
    labels = torch.randint(-1, C, (images, *size), generator=generator)
    labels[0, 2:4] = -1
    return pixels, table, labels


def negatives_of(kind, C, count=None):
    return Negatives(kind=kind, count=min(count or KINDS[kind], C - 1))


def compute(pixels, table, labels, kind="all", logit="distance", tau=20.0, count=None, **options):
    negatives = negatives_of(kind, len(table), count)
    torch.manual_seed(3)
    return loss_and_gradients(
        lambda: embedding_cross_entropy(
            pixels, table, labels, negatives=negatives, temperature=tau, logit=logit, **options
        ),
        pixels,
        table,
    )


def expect(got, want, tolerance):
    """Within `tolerance` of the largest value of each."""
    for one, other in zip(got, want, strict=True):
        other = other.double()
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max(), (one, other)


def expect_dense(pixels, table, labels, kind, count, logit="cosine", tolerance=3e-6):
    """Loss and gradients of this batch are within `tolerance` of those of the dense formula in float64."""
    ours = compute(pixels, table, labels, kind, logit, tau=7.0, count=count)
    wide = [tensor.detach().double().requires_grad_() for tensor in (pixels, table)]
    torch.manual_seed(3)
    expect(ours, loss_and_gradients(lambda: reference(*wide, labels, kind, count, 7.0, logit), *wide), tolerance)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("C", "D"), [(3, 2), (19, 6), (60, 16), (61, 33), (130, 70)])
def test_loss_equals_dense_reference(kind, logit, C, D, number, monkeypatch):
    """D below, at and above whole vectors, and more of them than are added up at once; two blocks or more an image."""
    monkeypatch.setattr(cpu_backend, "BLOCK_BYTES", 1)
    monkeypatch.setattr(cpu_cells, "BLOCK_CELLS", 1)
    pixels, table, labels = batch(C, D)
    calls = []
    embedding_loss = cpu_backend.embedding_loss
    monkeypatch.setattr(cpu_backend, "embedding_loss", lambda *a, **k: calls.append(1) or embedding_loss(*a, **k))
    with threads(number):
        ours = compute(pixels, table, labels, kind, logit, tau=7.0)
    assert calls
    wide = [tensor.detach().double().requires_grad_() for tensor in (pixels, table)]
    torch.manual_seed(3)
    want = loss_and_gradients(lambda: reference(*wide, labels, kind, min(KINDS[kind], C - 1), 7.0, logit), *wide)
    # In two dimensions a pixel comes close to classes that are not its own, where 2 - 2 o.e keeps few digits.
    expect(ours, want, 3e-4 if D == 2 else 3e-6)


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("kind", ["all", "nearest", "random"])
def test_two_classes(kind, logit):
    pixels, table, labels = batch(2, 5)
    wide = [tensor.detach().double().requires_grad_() for tensor in (pixels, table)]
    want = loss_and_gradients(lambda: reference(*wide, labels, "all", 1, 5.0, logit), *wide)
    expect(compute(pixels, table, labels, kind, logit, tau=5.0, count=1), want, 1e-5)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("tau", [20.0, 60.0, 300.0])
@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_way_without_kernels(kind, logit, tau):
    """At sizes that the pixel-by-pixel reference takes too long for, and with logits beyond float32's exponent."""
    pixels, table, labels = batch(700, 12, size=(40, 37), cells=(11, 10))
    ours = compute(pixels, table, labels, kind, logit, tau)
    wide = [tensor.detach().double().requires_grad_() for tensor in (pixels, table)]
    # An error of a logit, which grows with tau, is a relative one of a weight.
    expect(ours, compute(*wide, labels, kind, logit, tau), 1e-6 * tau)


@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("kind", ["nearest", "random", "mixed"])
def test_every_other_class_is_the_exact_softmax(kind, logit):
    pixels, table, labels = batch(40, 12)
    exact = compute(pixels, table, labels, "all", logit)
    expect(compute(pixels, table, labels, kind, logit, count=39), exact, 2e-6)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("logit", LOGITS)
@pytest.mark.parametrize("kind", KINDS)
def test_number_of_threads_changes_no_bit(kind, logit):
    pixels, table, labels = batch(150, 12, size=(40, 37), cells=(11, 10))
    first = compute(pixels, table, labels, kind, logit)
    for number in (1, 3):
        with threads(number):
            other = compute(pixels, table, labels, kind, logit)
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True)), number


@pytest.mark.parametrize("kind", KINDS)
def test_neither_blocks_nor_kept_weights_change_more_than_rounding(kind, monkeypatch):
    pixels, table, labels = batch(150, 12, size=(40, 37), cells=(11, 10))
    first = compute(pixels, table, labels, kind)
    for tile_bytes, block_bytes in [(1, 2**19), (None, 1), (1, 10**4)]:
        monkeypatch.setattr(cpu_backend, "BLOCK_BYTES", block_bytes)
        expect(compute(pixels, table, labels, kind, tile_bytes=tile_bytes), first, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_format_and_strides_change_nothing(kind):
    pixels, table, labels = batch(19, 6)
    first = compute(pixels, table, labels, kind)
    with torch.no_grad():
        twice = torch.stack([pixels, pixels], 1)
        others = pixels.contiguous(memory_format=torch.channels_last), twice[:, 1], pixels.mT.contiguous().mT
    for other in others:
        got = compute(other.requires_grad_(), table, labels.mT.contiguous().mT, kind)
        assert all(torch.equal(one, two) for one, two in zip(first, got, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_without_labels_the_loss_is_0(kind):
    pixels, table, labels = batch(19, 6)
    for values in compute(pixels, table, torch.full_like(labels, -1), kind):
        assert not values.any()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("kind", KINDS)
def test_another_index_to_ignore(kind):
    pixels, table, labels = batch(19, 6)
    got = compute(pixels, table, labels.where(labels >= 0, 255), kind, ignore_index=255)
    assert all(torch.equal(one, two) for one, two in zip(got, compute(pixels, table, labels, kind), strict=True))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_nan(kind):
    pixels, table, labels = batch(150, 6)
    with torch.no_grad():
        pixels[0, :, 1, 1] = math.nan
    loss, grad_pixels, grad_table = compute(pixels, table, labels, kind)
    assert loss.isnan()
    assert grad_pixels[0].isnan().any()
    assert grad_table.isnan().any()


def test_without_gradients_the_loss_is_the_same():
    pixels, table, labels = batch(150, 6)
    for kind in KINDS:
        loss, *_ = compute(pixels, table, labels, kind)
        with torch.no_grad():
            torch.manual_seed(3)
            negatives = negatives_of(kind, len(table))
            assert embedding_cross_entropy(pixels, table, labels, negatives=negatives, logit="distance") == loss


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_alone_of_one_input(kind):
    pixels, table, labels = batch(19, 6)
    _, grad_pixels, grad_table = compute(pixels, table, labels, kind)
    (alone,) = compute_alone(pixels, table.detach(), labels, kind, pixels)
    assert torch.equal(alone, grad_pixels)
    (alone,) = compute_alone(pixels.detach(), table, labels, kind, table)
    assert torch.equal(alone, grad_table)


def compute_alone(pixels, table, labels, kind, wanted):
    torch.manual_seed(3)
    negatives = negatives_of(kind, len(table))
    loss = embedding_cross_entropy(pixels, table, labels, negatives=negatives, logit="distance")
    return torch.autograd.grad(loss, wanted)


def test_what_the_kernel_supports():
    pixels = torch.zeros(1, 6, 2, 2)
    every = resolve_negatives(Negatives(kind="all"), 1000)
    assert cpu_backend.supports(pixels, every)
    assert not cpu_backend.supports(pixels.double(), every)
    assert not cpu_backend.supports(pixels.to("meta"), every)
    assert not cpu_backend.supports(torch.zeros(1, cpu.MAX_DIM + 1, 2, 2), every)
    for kind, count, expected in [
        ("nearest", 64, True),
        ("nearest", 65, False),
        ("mixed", 65, False),
        ("random", 500, True),
    ]:
        negatives = resolve_negatives(Negatives(kind=kind, count=count), 1000)
        assert cpu_backend.supports(pixels, negatives) == expected


def unit(count, D, seed):
    return F.normalize(torch.randn(count, D, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize(
    ("P", "C", "D", "K"),
    [
        (1, 2, 1, 1),
        (70, 19, 6, 1),
        (70, 19, 6, 18),
        (130, 150, 12, 8),
        (65, 1500, 12, 2),
        (40, 1284, 64, 33),
        (9, 70, 200, 64),
    ],
)
def test_search_finds_what_sorting_finds(P, C, D, K, excluded):
    o, rows = unit(P, D, 0), unit(C, D, 1)
    exclude = torch.randint(C, (P,), generator=torch.Generator().manual_seed(2)) if excluded else None
    for pixels in (o, o.T.contiguous().T):
        found, ids = nearest_classes(pixels, rows.T.contiguous(), K, exclude_P=exclude)
        scores = o.double() @ rows.double().T
        assert ids.dtype == torch.int64
        torch.testing.assert_close(found.double(), scores.gather(1, ids), rtol=0, atol=3e-7)
        if exclude is not None:
            scores.scatter_(1, exclude[:, None], -torch.inf)
        best = scores.topk(K).values
        torch.testing.assert_close(found.double().sort(1, descending=True).values, best, rtol=0, atol=3e-7)
        assert all(len(set(row)) == K for row in ids.tolist())


@pytest.mark.parametrize("K", [1, 3, 8])
def test_of_equal_classes_each_is_found_once(K):
    rows = unit(1, 6, 0).expand(500, 6)
    found, ids = nearest_classes(unit(30, 6, 1), rows.T.contiguous(), K, exclude_P=torch.arange(30))
    assert all(len(set(row)) == K for row in ids.tolist())
    assert not (ids == torch.arange(30)[:, None]).any()
    assert (found == found[:, :1]).all()


def test_search_among_rising_scores_where_each_class_is_the_best_so_far():
    rows = torch.linspace(-1, 1, 2000)[:, None].repeat(1, 4)
    _, ids = nearest_classes(torch.ones(3, 4), rows.T.contiguous(), 8)
    assert torch.equal(ids.sort(1).values, torch.arange(1992, 2000).expand(3, 8))


@pytest.mark.parametrize("K", [1, 2, 8])
def test_search_among_nan_gives_classes(K):
    _, ids = nearest_classes(torch.full((5, 6), math.nan), unit(100, 6, 0).T.contiguous(), K)
    assert ((ids >= 0) & (ids < 100)).all()


def test_prediction_and_separation_are_those_of_torch(monkeypatch):
    pixels, table, _ = batch(150, 12)
    results = []
    for switch in ("1", "0"):
        monkeypatch.setenv("KILOSEG_NATIVE", switch)
        separation = class_separation(table, margin=1.0)
        results.append(
            [
                nearest_class(pixels, table, size=(24, 20)),
                *nearest_two(pixels, table, size=(24, 20)),
                separation,
                *torch.autograd.grad(separation, table),
            ]
        )
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_tensors_that_a_kernel_cannot_read_are_named():
    with pytest.raises(ValueError, match=r"rows is torch.float64 .* expected contiguous torch.float32 on cpu"):
        cpu.pointer("rows", torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"rows is torch.float32 with strides \(2,\)"):
        cpu.pointer("rows", torch.zeros(6)[::2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-compiler", "CC = no-such-compiler: there is no program 'no-such-compiler'"),
        ("false", "loss.c .* failed"),
    ],
)
def test_without_a_compiler_torch_takes_over_and_it_is_said_once(name, message, fresh, monkeypatch, caplog):
    pixels, table, labels = batch(19, 6)
    monkeypatch.setenv("KILOSEG_NATIVE", "0")
    want = compute(pixels, table, labels)
    monkeypatch.delenv("KILOSEG_NATIVE")
    monkeypatch.setenv("CC", name)
    for _ in range(2):
        got = compute(pixels, table, labels)
        assert all(torch.equal(one, two) for one, two in zip(got, want, strict=True))
    assert not list(fresh.glob("*"))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("the loss and the search for nearest classes run on a CPU without")
    assert re.search(message, record.getMessage())


@pytest.mark.parametrize("before", ["", "env ", "  "])
@pytest.mark.parametrize("after", ["", " -m64 -g0", " '-DNAME=\"a b\"'"])
def test_the_compiler_may_be_several_words(before, after, fresh, monkeypatch):
    """As build systems set it: CC="gcc -m64", CC="ccache gcc"."""
    monkeypatch.setenv("CC", f"{before}gcc{after}")
    assert cpu.library() is not None
    assert len(list(fresh.glob("*.so"))) == 1


def test_the_compiler_may_have_a_space_in_its_path(fresh, monkeypatch, tmp_path):
    folder = tmp_path / "my tools"
    folder.mkdir()
    (folder / "cc").symlink_to(shutil.which("gcc"))
    for words in (str(folder / "cc"), f"'{folder / 'cc'}' -g0"):
        monkeypatch.setenv("CC", words)
        assert compiler.compiler_command()[0] == str(folder / "cc")
        compiler._loaded.cache_clear()
        assert cpu.library() is not None


def test_quotes_that_do_not_close_are_named(fresh, monkeypatch, caplog):
    monkeypatch.setenv("CC", "gcc '-DX")
    assert cpu.library() is None
    assert "cannot be split into words" in caplog.text


def test_no_compiler_is_found(fresh, monkeypatch, caplog, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cpu.library() is None
    assert "no C compiler (cc, gcc or clang) was found; install one" in caplog.text


def test_where_the_cache_cannot_be_written(fresh, monkeypatch, caplog):
    fresh.write_text("a file where the folder should be")
    kernels = cpu.library()
    assert kernels is not None
    assert "for this process only" in caplog.text


def test_a_kept_library_needs_no_compiler(fresh, monkeypatch):
    assert cpu.library() is not None
    (kept,) = fresh.glob("*")
    compiler._loaded.cache_clear()
    monkeypatch.setattr(compiler, "_compile", lambda command: pytest.fail("compiled again"))
    assert cpu.library() is not None
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DOTHER"))
    assert compiler.cache_folder() == fresh
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        compiler.compiled()
    assert kept.exists()


def test_threads_are_those_of_torch_or_new_ones(fresh, monkeypatch):
    """Both give the same bits; OpenMP's are in the one libgomp that torch has loaded."""
    monkeypatch.setattr(compiler, "FLAGS", compiler.FLAGS[:-1])  # bits are those of optimized code
    pixels, table, labels = batch(150, 12, size=(40, 37), cells=(11, 10))
    with threads(3):
        first = compute(pixels, table, labels)
        if compiler._threads(tuple(compiler.compiler_command())) and Path("/proc/self/maps").exists():
            mapped = Path("/proc/self/maps").read_text().split()
            assert len({path for path in mapped if "libgomp" in path and "/torch/" in path}) == 1
            assert not {path for path in mapped if path.endswith("libgomp.so.1") and "/torch/" not in path}
        monkeypatch.setattr(compiler, "_threads", lambda _: [])
        compiler._loaded.cache_clear()
        other = compute(pixels, table, labels)
    assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


def test_processes_that_compile_at_once_do_not_disturb_each_other(tmp_path):
    source = (
        "import torch; from kiloseg.ops import cpu; from kiloseg.ops.cpu import compiler\n"
        "compiler.FLAGS += ('-O0',); assert cpu.library() is not None; print(cpu.lanes().group)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "KILOSEG_CACHE": str(tmp_path)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=200) for process in running]
    assert [out.decode().strip() for out, _ in answers] == [str(cpu.lanes().group)] * 3, answers
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]
    assert len(list(tmp_path.iterdir())) == 1
