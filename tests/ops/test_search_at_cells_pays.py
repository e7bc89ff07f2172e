"""Where prediction takes scores at feature cells, with and without the compiled kernel."""

import pytest
import torch

from kiloseg.ops.upsampled_search import supports


@pytest.mark.parametrize(
    ("native", "dtype", "D", "cells", "C", "count", "expected"),
    [
        ("1", torch.float32, 12, 32, 19, 1, True),
        ("1", torch.float32, 12, 33, 19, 1, False),
        ("1", torch.float32, 12, 32, 19, 3, False),
        ("0", torch.float32, 128, 16, 1284, 2, True),
        ("0", torch.bfloat16, 64, 16, 1024, 1, True),
        ("0", torch.float64, 128, 16, 1284, 1, False),
        ("0", torch.float32, 128, 17, 1284, 1, False),
        ("0", torch.float32, 63, 16, 10_000, 1, False),
        ("0", torch.float32, 128, 16, 511, 1, False),
        ("0", torch.float32, 128, 16, 1284, 3, False),
    ],
)
def test_where_the_search_is_at_cells(native, dtype, D, cells, C, count, expected, monkeypatch):
    monkeypatch.setenv("KILOSEG_NATIVE", native)
    assert supports(torch.empty(1, D, cells, cells, dtype=dtype), (64, 64), count, C) == expected
