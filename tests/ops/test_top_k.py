"""The search for nearest classes against a full sort."""

import pytest
import torch
import torch.nn.functional as F

from kiloseg.ops import top_k
from kiloseg.ops.tiles import shapes_only, tiles
from kiloseg.ops.top_k import nearest_classes

pytestmark = pytest.mark.usefixtures("one_thread", "by_torch")


@pytest.fixture
def by_torch(monkeypatch):
    """The compiled search has tests of its own."""
    monkeypatch.setenv("KILOSEG_NATIVE", "0")


def vectors(pixels, classes, dim=6):
    generator = torch.Generator().manual_seed(pixels + classes)
    return (F.normalize(torch.randn(number, dim, generator=generator), dim=1) for number in (pixels, classes))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("excluded", [False, True])
@pytest.mark.parametrize(("classes", "count"), [(19, 1), (19, 18), (150, 8), (161, 2), (175, 10)])
def test_finds_what_sorting_finds(classes, count, excluded, grouped, monkeypatch):
    monkeypatch.setattr(top_k, "GROUPED_FROM", 0 if grouped else 10**9)
    o, rows = vectors(70, classes)
    exclude = torch.randint(classes, (70,)) if excluded else None
    found, ids = nearest_classes(o, rows.T.contiguous(), count, exclude_P=exclude, tile_bytes=1)
    scores = o @ rows.T
    torch.testing.assert_close(found, scores.gather(1, ids))
    if exclude is not None:
        assert not (ids == exclude[:, None]).any()
        scores.scatter_(1, exclude[:, None], -torch.inf)
    order = scores.argsort(dim=1, descending=True)[:, :count]
    assert torch.equal(ids.sort(1).values, order.sort(1).values)


def test_groups_are_used_where_they_pay_and_find_the_same(monkeypatch):
    o, rows = vectors(40, top_k.GROUPED_FROM + 5)
    calls = []
    by_groups = top_k._topk_by_groups
    monkeypatch.setattr(top_k, "_topk_by_groups", lambda *a: calls.append(1) or by_groups(*a))
    _, ids = nearest_classes(o, rows.T.contiguous(), 8)
    assert calls
    assert torch.equal(ids.sort(1).values, (o @ rows.T).topk(8).indices.sort(1).values)


def test_the_largest_all_in_one_group():
    classes = 64
    scores = torch.zeros(1, classes)
    scores[0, 3::4] = torch.arange(16.0) + 1  # groups are c % 4: one holds the 16 largest
    _, ids = top_k._topk_by_groups(scores, 3)
    assert set(ids[0].tolist()) == {63, 59, 55}


def test_tiles_cover_everything_once_and_where_shapes_count_the_ends():
    assert [(tile.start, tile.stop) for tile in tiles(10, 4)] == [(0, 4), (4, 8), (8, 10)]
    assert list(tiles(0, 4)) == []
    with shapes_only():
        assert [tile.start for tile in tiles(8, 4)] == [0, 4]
        assert [(tile.start, tile.stop) for tile in tiles(22, 4)] == [(0, 4), (4, 8), (20, 22)]
    assert len(list(tiles(22, 4))) == 6
