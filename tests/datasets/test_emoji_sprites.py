"""Sprites of emoji come from pictures or from drawings, and become objects that change as they may."""

import numpy as np
import pytest
from PIL import Image
from small_emoji import CLASSES, encoded, pack

from kiloseg.storage.errors import DataError
from synthetic.emoji_bank import read_bank
from synthetic.emoji_drawings import ICONS, icon_name, read_icons
from synthetic.emoji_drawings import draw as draw_svg
from synthetic.emoji_objects import _recoloring, draw_object
from synthetic.emoji_sprites import SIDE, sprite, sprites_of, twins

# Sprites


def test_twins_agree_with_the_difference_worked_out_pair_by_pair():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (6, SIDE, SIDE, 4)).astype(np.uint8)
    base[..., 3] = 255
    base[3:, :, 32:] = 0
    similar = [
        np.clip(one.astype(int) + rng.uniform(-spread, spread, one.shape), 0, 255)
        for one in base
        for spread in (3, 14, 14.5, 15, 15.5, 16, 18)
    ]
    sprites = np.concatenate([base, np.stack(similar)]).astype(np.uint8)
    sprites[..., :3] = np.minimum(sprites[..., :3], sprites[..., 3:])
    expected = []
    for i, one in enumerate(sprites / 255):
        for j in range(i + 1, len(sprites)):
            other = sprites[j] / 255
            cover = np.maximum(one[..., 3], other[..., 3]).sum()
            if np.sqrt(((one - other) ** 2).sum() / 4 / cover) < 0.0355:
                expected.append((i, j))
    assert twins(sprites) == expected
    assert 30 < len(expected) < 90  # of those of one base, some are beyond


def test_sprites_are_premultiplied_and_square(small_packages):
    straight = np.zeros((64, 64, 4), np.uint8)
    straight[..., 0], straight[:32, :, 3] = 200, 128
    found = sprite(encoded(Image.fromarray(straight), "PNG"))
    assert found[40].max() == 0 and found[0, 0].tolist() == [100, 0, 0, 128]
    tall = sprite(encoded(Image.new("RGBA", (256, 264), (9, 9, 9, 255)), "WEBP", lossless=True))
    assert tall.shape == (64, 64, 4) and tall[:, 0, 3].max() == 0 and tall[:, 1:63, 3].min() == 255


def test_an_empty_or_broken_picture_is_named():
    for picture, said in (
        (b"no picture", "not a PNG or WebP"),
        (encoded(Image.new("RGBA", (64, 64)), "PNG"), "half opaque"),
    ):
        with pytest.raises(DataError, match=rf"emoji 1f600 by google: .*{said}"):
            sprites_of({"1f600": picture}, ["1f600"], "google")


# Drawings


def test_names_of_icons():
    assert icon_name("Man\u2019s Shoe") == "mans-shoe" and icon_name("piñata") == "pinata"
    assert icon_name("Japanese “free of charge” button") == "japanese-free-of-charge-button"


def test_vendors_may_lack_classes_and_draw_two_alike(small_bank, small_bank_2):
    bank, _ = read_bank(small_bank_2[0])
    before, _ = read_bank(small_bank[0])
    assert bank.classes == before.classes  # further vendors change no class
    assert all(np.array_equal(bank.sprites[vendor], drawn) for vendor, drawn in before.sprites.items())
    drawn = {
        vendor: {one.name for one, sprite in zip(bank.classes, sprites, strict=True) if sprite[..., 3].any()}
        for vendor, sprites in bank.sprites.items()
    }
    assert drawn["openmoji"] == CLASSES
    assert drawn["noto-v1"] == drawn["emojione-v1"] == CLASSES - {"dog", "relaxed"}  # a turned alias is none of its own
    assert drawn["emojione"] == CLASSES - {"dog", "relaxed", "cat2", "fox_face"}  # nobody could tell which is meant
    number = [one.name for one in bank.classes].index("grinning")
    sprite = bank.sprites["openmoji"][number]
    assert sprite[40, 10, 3] == 255 and sprite[30, 60, 3] == 0 and sprite[11, 39].tolist() == [0, 0, 0, 255]


def test_drawings_that_cannot_be_read_are_named(small_drawings, tmp_path):
    _, packages = small_drawings
    with pytest.raises(DataError, match=r"emoji 1f600 by openmoji cannot be drawn \(the document does not have"):
        draw_svg({"1f600": b"<svg"}, ["1f601", "1f600"], "openmoji")
    path = tmp_path / packages[0].tarball
    pack(path, {ICONS: b"[]"})
    with pytest.raises(DataError, match=r"icons\.json of .* cannot be read"):
        read_icons(path, {})
    pack(path, {"package/package.json": b"{}"})
    with pytest.raises(DataError, match=rf"holds no package/icons\.json; expected a tarball of {packages[0].name}@"):
        read_icons(path, {})


# Objects


def test_colors_change_as_straight_colors_would_and_nothing_shows_where_nothing_is():
    colors = np.random.default_rng(0).uniform(0, 255, (50, 3))
    opacity = np.linspace(0, 255, 50)[:, None]
    for seed in range(5):
        rows = np.concatenate([colors * opacity / 255, opacity], 1)
        found = rows @ _recoloring(np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        low, high = np.array([(0.85, 1.15), (0.75, 1.25), (0.75, 1.2), *3 * [(0.94, 1.06)]]).T
        contrast, saturation, brightness, *tint = rng.uniform(low, high)
        gray = colors @ [[0.299], [0.587], [0.114]]
        straight = (gray + saturation * (colors - gray)) * brightness * tint
        straight = 127.5 + contrast * (straight - 127.5)
        assert found == pytest.approx(straight * opacity / 255, abs=1e-2)
        assert not found[0].any()


def test_objects_are_never_brighter_than_their_opacity(small_bank):
    bank, _ = read_bank(small_bank[0])
    rng = np.random.default_rng(0)
    for number in range(120):
        colors, opacity = draw_object(rng, bank.sprites["google"][number % len(CLASSES)], 256, mirrors=True)
        assert (colors <= opacity).all() and colors.min() >= 0 and opacity.max() == 255
        assert (opacity[..., :1] == opacity).all() and opacity[0].any() and opacity[:, -1].any()
        assert 35 <= max(opacity.shape[:2]) <= 256 * 0.36 * 1.3


def test_only_what_may_be_mirrored_is():
    ell = np.zeros((SIDE, SIDE, 4), np.uint8)
    ell[4:60, 4:16] = ell[48:60, 4:60] = 255

    def leans_left(drawn):
        cells = drawn[1][..., 0] > 127
        return (
            cells[: len(cells) // 2, : cells.shape[1] // 2].sum()
            > cells[: len(cells) // 2, cells.shape[1] // 2 :].sum()
        )

    for mirrors, low, high in ((False, 100, 100), (True, 30, 70)):
        rng = np.random.default_rng(1)
        left = sum(bool(leans_left(draw_object(rng, ell, 256, mirrors=mirrors))) for _ in range(100))
        assert low <= left <= high
