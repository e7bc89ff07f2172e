"""Prediction by scores at feature cells against every score of every pixel in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_cpu import threads

from kiloseg.models import nearest_class, nearest_two
from kiloseg.ops import tiles, upsampled_search
from kiloseg.ops.cpu import cells as cpu_cells


@pytest.fixture(params=["kernel", "torch"])
def means(request, monkeypatch):
    """The compiled kernel, and torch's operations where there is none."""
    if request.param == "torch":
        monkeypatch.setenv("KILOSEG_NATIVE", "0")


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The search is at cells whatever the factor of upsampling; how often it was."""
    counted = []
    best_classes = upsampled_search.best_classes
    monkeypatch.setattr(upsampled_search, "supports", lambda *_: True)
    monkeypatch.setattr(upsampled_search, "best_classes", lambda *a, **k: counted.append(1) or best_classes(*a, **k))
    yield counted
    assert counted


def inputs(C, D, cells, images=2):
    generator = torch.Generator().manual_seed(C + D)
    return torch.randn(images, D, *cells, generator=generator), torch.randn(C, D, generator=generator)


def every_cosine(pixels, table, size):
    upsampled = F.interpolate(pixels.double(), size, mode="bilinear", align_corners=False)
    return torch.einsum("bdhw,cd->bchw", F.normalize(upsampled, dim=1), F.normalize(table.double(), dim=1))


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((3, 4), (12, 16)),
        ((3, 4), (13, 9)),
        ((1, 1), (5, 6)),
        ((1, 3), (4, 7)),
        ((4, 1), (9, 3)),
        ((5, 6), (5, 6)),
        ((9, 8), (4, 5)),
    ],
)
@pytest.mark.parametrize(("C", "D"), [(2, 3), (17, 5), (64, 12), (200, 33)])
def test_equals_brute_force(C, D, cells, size):
    pixels, table = inputs(C, D, cells)
    best, ids = every_cosine(pixels, table, size).topk(2, dim=1)
    clear = best[:, 0] - best[:, 1] > 1e-6
    assert clear.double().mean() > 0.9
    assert torch.equal(nearest_class(pixels, table, size=size)[clear], ids[:, 0][clear])
    found = nearest_two(pixels, table, size=size)
    assert torch.equal(found.labels[clear], ids[:, 0][clear])
    torch.testing.assert_close(found.cosine.double(), best[:, 0], rtol=0, atol=3e-6)
    torch.testing.assert_close(found.runner_up_cosine.double(), best[:, 1], rtol=0, atol=3e-6)
    assert (found.runner_up != found.labels).all()


@pytest.mark.parametrize(("block_cells", "tile_bytes"), [(1, 1), (30, 20_000)])
def test_blocks_chunks_and_threads_change_nothing(block_cells, tile_bytes, monkeypatch):
    pixels, table = inputs(200, 12, (20, 19))
    first = nearest_two(pixels, table, size=(80, 75))
    monkeypatch.setattr(cpu_cells, "SEARCH_CELLS", block_cells)
    monkeypatch.setitem(upsampled_search.TILE_BYTES, "cpu", tile_bytes)
    for number in (1, 3):
        with threads(number):
            other = nearest_two(pixels, table, size=(80, 75))
        assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.usefixtures("means")
def test_all_cosines_below_zero_and_equal_classes():
    """What fills up a panel has a score of 0 and must not be found; of equal classes each is found once."""
    pixels = torch.ones(1, 4, 2, 2)
    found = nearest_two(pixels, -torch.ones(3, 4), size=(8, 8))
    assert (found.labels < 3).all() and (found.runner_up < 3).all() and (found.labels != found.runner_up).all()
    torch.testing.assert_close(found.cosine, torch.full((1, 8, 8), -1.0))


@pytest.mark.usefixtures("means")
def test_nan_gives_classes_and_cosines_that_are_nan():
    pixels, table = inputs(70, 5, (3, 3))
    pixels[0, :, 0, 0] = math.nan
    found = nearest_two(pixels, table, size=(12, 12))
    assert found.cosine[0, 0, 0].isnan()
    assert ((found.labels >= 0) & (found.labels < 70)).all()
    assert found.cosine[1].isfinite().all()


@pytest.mark.usefixtures("means")
def test_memory_format_and_strides_change_nothing():
    pixels, table = inputs(70, 5, (3, 4))
    first = nearest_class(pixels, table, size=(12, 13))
    for other in (
        pixels.contiguous(memory_format=torch.channels_last),
        torch.stack([pixels, pixels], 1)[:, 1],
        pixels.mT.contiguous().mT,
    ):
        assert torch.equal(nearest_class(other, table, size=(12, 13)), first)


@pytest.mark.parametrize(("tile_bytes", "patch_pixels"), [(1, 1), (20_000, 60)])
def test_blocks_and_patches_change_rounding_only(tile_bytes, patch_pixels, monkeypatch):
    monkeypatch.setenv("KILOSEG_NATIVE", "0")
    pixels, table = inputs(200, 12, (20, 19))
    first = nearest_two(pixels, table, size=(80, 75))
    monkeypatch.setitem(tiles.TILE_BYTES, "cpu", tile_bytes)
    monkeypatch.setattr(upsampled_search, "PATCH_PIXELS", patch_pixels)
    other = nearest_two(pixels, table, size=(80, 75))
    clear = first.cosine - first.runner_up_cosine > 1e-6
    assert torch.equal(first.labels[clear], other.labels[clear])
    torch.testing.assert_close(first.cosine, other.cosine, rtol=0, atol=1e-6)
    torch.testing.assert_close(first.runner_up_cosine, other.runner_up_cosine, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mixed_precision_of_the_network_changes_nothing(dtype):
    """A validation searches within the autocast of the network, which on a CPU gives bfloat16."""
    pixels, table = inputs(1100, 64, (3, 4))
    pixels = pixels.to(dtype)
    first = nearest_two(pixels.float(), table, size=(12, 16))
    with torch.autocast("cpu", torch.bfloat16):
        other = nearest_two(pixels, table, size=(12, 16))
        labels = nearest_class(pixels, table, size=(12, 16))
    assert all(torch.equal(one, two) for one, two in zip(first, other, strict=True))
    assert torch.equal(labels, first.labels)
