"""Labels stay on their pixels through scaling, cropping, flipping and jitter, and the seed alone decides."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kiloseg.config import Data
from kiloseg.data.reading.transforms import Augment

pytestmark = pytest.mark.usefixtures("one_thread")


def stripes(size, axis):
    """A mask of 0 and 1 in stripes of 16 pixels, black and white in the image."""
    mask = (np.arange(size) // 16 % 2).astype(np.int32)
    mask = np.repeat(mask[:, None], size, 1) if axis == 0 else np.repeat(mask[None], size, 0)
    return np.repeat(mask[..., None] * np.uint8(255), 3, 2).astype(np.uint8), mask


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.31, 0.31), (0.7, 0.7), (1.0, 1.0), (1.37, 1.37), (3.3, 3.3)])
def test_labels_stay_on_their_pixels(axis, low, high):
    image, mask = stripes(128, axis)
    augment = Augment(Data(crop=64, scale_min=low, scale_max=high, jitter=0.0, flip=0.5))
    clear = 0
    for seed in range(40):
        changed, labels = augment(image, mask, seed)
        # Padding is black too, so the pixels it blends with are left out, at the border of the crop also.
        inside = F.max_pool2d(F.pad((labels < 0).float()[None], (2, 2, 2, 2), value=1), 5, stride=1)[0] == 0
        brightness = changed[0].double() / 255
        # A blended pixel belongs to the stripe that gives more of it; halves are left to either.
        told = inside & ((brightness - 0.5).abs() > 0.02)
        assert torch.equal((brightness > 0.5)[told].long(), labels[told]), seed
        clear += told.sum().item() / inside.sum().item()
    assert clear / 40 > 0.8, "nearly all pixels were compared"


def positions(height, width):
    """Red is the row and green the column of every pixel; the label is made of both."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.full_like(rows, 255)], 2).astype(np.uint8)
    return image, (rows * 256 + columns).astype(np.int32)


def test_crop_without_scaling_is_a_window_of_the_image_or_its_mirror():
    image, mask = positions(100, 120)
    augment = Augment(Data(crop=64, scale_min=1.0, scale_max=1.0, jitter=0.0, flip=0.5))
    corners, mirrored = set(), 0
    for seed in range(200):
        changed, labels = augment(image, mask, seed)
        rows, columns = labels // 256, labels % 256
        assert torch.equal(changed[0].long(), rows)
        assert torch.equal(changed[1].long(), columns)
        top, left = rows.min().item(), columns.min().item()
        expected = torch.from_numpy(mask[top : top + 64, left : left + 64]).long()
        is_mirrored = bool(columns[0, 0] > columns[0, 1])
        assert torch.equal(labels, expected.flip(1) if is_mirrored else expected)
        corners.add((top, left))
        mirrored += is_mirrored
    tops, lefts = zip(*corners, strict=True)
    assert (min(tops), max(tops)) == (0, 36), "every place of the window can be drawn"
    assert min(lefts) <= 2
    assert max(lefts) >= 54
    assert len(corners) > 150
    assert 70 < mirrored < 130


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_flip_never_and_always(flip):
    image, mask = positions(64, 64)
    augment = Augment(Data(crop=64, scale_min=1.0, scale_max=1.0, jitter=0.0, flip=flip))
    for seed in range(10):
        changed, labels = augment(image, mask, seed)
        step = 1 if flip == 0 else -1
        assert np.array_equal(labels, mask[:, ::step])
        assert np.array_equal(changed.permute(1, 2, 0), image[:, ::step])


@pytest.mark.parametrize(("height", "width"), [(20, 50), (50, 20), (100, 20), (1, 1), (63, 64)])
def test_small_images_are_padded_with_ignored_pixels(height, width):
    image, mask = positions(height, width)
    mask = np.zeros_like(mask)  # the class that padding must not be taken for
    augment = Augment(Data(crop=64, scale_min=1.0, scale_max=1.0, jitter=0.0))
    places = set()
    for seed in range(30):
        changed, labels = augment(image, mask, seed)
        inside = labels == 0
        assert set(labels.unique().tolist()) <= {-1, 0}
        assert inside.sum() == min(height, 64) * min(width, 64)
        assert torch.equal(changed[2] == 255, inside)
        assert not changed[:, ~inside].any()
        places.add((inside.any(1).int().argmax().item(), inside.any(0).int().argmax().item()))
    assert len(places) > (8 if max(height, width) < 63 else 1), "the image does not always lie in a corner"


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.5])
def test_padding_scales_with_the_image(scale):
    image, mask = positions(40, 24)
    augment = Augment(Data(crop=64, scale_min=scale, scale_max=scale, jitter=0.0))
    for seed in range(10):
        changed, labels = augment(image, mask * 0, seed)
        inside = labels == 0
        height, width = inside.any(1).sum().item(), inside.any(0).sum().item()
        assert height == pytest.approx(min(40 * scale, 64), abs=1)
        assert width == pytest.approx(24 * scale, abs=1)
        assert inside.sum() == height * width
        assert (changed[2][inside] > 40).all()  # a corner is blended with padding on two sides
        assert set(labels.unique().tolist()) == {-1, 0}


def test_scales_spread_over_their_range():
    rows = np.mgrid[:250, :250][0]
    image = np.repeat(rows[..., None], 3, 2).astype(np.uint8)
    augment = Augment(Data(crop=64, scale_min=0.5, scale_max=2.0, jitter=0.0))
    # Rows of the image that a crop of 64 rows spans: 128 at scale 0.5 and 32 at 2.
    scales = []
    for seed in range(200):
        changed, _ = augment(image, rows.astype(np.int32), seed)
        scales.append(63 / (int(changed[0, -1, 0]) - int(changed[0, 0, 0])))
    assert 0.48 < min(scales) < 0.53
    assert 1.9 < max(scales) < 2.15
    assert np.median(scales) == pytest.approx(1.0, rel=0.15), "as often enlarged as reduced"


@pytest.mark.parametrize("crop", [32, 96, 160])
def test_size_and_type_of_a_crop(crop):
    image, mask = positions(90, 70)
    changed, labels = Augment(Data(crop=crop))(image, mask, 0)
    assert (changed.shape, changed.dtype) == ((3, crop, crop), torch.uint8)
    assert (labels.shape, labels.dtype) == ((crop, crop), torch.int64)


def test_jitter_changes_colors_and_no_label():
    image, mask = positions(128, 128)
    still = Augment(Data(crop=64, jitter=0.0))
    moved = Augment(Data(crop=64, jitter=0.5))
    for seed in range(5):
        (before, labels), (after, same_labels) = still(image, mask, seed), moved(image, mask, seed)
        assert torch.equal(labels, same_labels)
        assert not torch.equal(before, after)


def test_seed_alone_decides_and_global_randomness_is_left_alone():
    image, mask = positions(128, 128)
    augment = Augment(Data(crop=64))
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    state, numpys, pythons = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = augment(image, mask, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpys)
    assert random.getstate() == pythons
    torch.manual_seed(2)
    second, other = augment(image, mask, 7), augment(image, mask, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], other[1])
