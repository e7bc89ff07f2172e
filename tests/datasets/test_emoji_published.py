"""The published packages of emoji, where npm brings them, give 1,536 classes and the drawings of most."""

import json

import pytest

import emoji
from kiloseg.storage.errors import DataError
from synthetic.emoji_classes import base_emoji, by_frequency, merge_twins
from synthetic.emoji_drawings import read_drawings
from synthetic.emoji_packages import DRAWINGS, PACKAGES, obtain, read_images, read_table
from synthetic.emoji_sprites import sprites_of, twins


@pytest.fixture(scope="module")
def real():
    """The published tarballs: those in runs/emoji, else brought there by npm; skips where neither works."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("npm_config_fetch_retries", "0")
        patch.setenv("npm_config_fetch_timeout", "60000")
        try:
            tarballs = obtain(emoji.WORK)
        except DataError as error:
            if "npm" not in str(error) or "sha256" in str(error):
                raise
            pytest.skip(f"the real packages cannot be had here: {error}")
    return tarballs


@pytest.fixture(scope="module")
def real_drawings(real):
    """The published tarballs of SVG, as `real`, and the codes of all classes."""
    try:
        tarballs = obtain(emoji.WORK, DRAWINGS)
    except DataError as error:
        if "npm" not in str(error) or "sha256" in str(error):
            raise
        pytest.skip(f"the real packages cannot be had here: {error}")
    pictures = {package.vendor: read_images(real[package.vendor], package) for package in PACKAGES}
    chosen = base_emoji(read_table(real["google"]), pictures.values())
    codes = [one.code for one in chosen]
    pairs = [pair for vendor, files in pictures.items() for pair in twins(sprites_of(files, codes, vendor))]
    return tarballs, [one.code for one in merge_twins(chosen, pairs)]


def test_the_real_packages_give_1536_classes(real):
    table = read_table(real["google"])
    assert len(json.loads(table)) == 1911
    pictures = {package.vendor: read_images(real[package.vendor], package) for package in PACKAGES}
    chosen = base_emoji(table, pictures.values())
    assert len(chosen) == 1816 - 253
    pairs = {}
    for vendor, files in pictures.items():
        pairs[vendor] = twins(sprites_of(files, [one.code for one in chosen], vendor))
    assert {vendor: len(found) for vendor, found in pairs.items()} == {"google": 1, "twitter": 59, "fluent": 5}
    classes = merge_twins(chosen, [pair for found in pairs.values() for pair in found])
    assert len(classes) == 1536
    mirrors = {one.name: one.mirrors for one in classes}
    for name in ("dog", "grinning", "bike", "sweet_potato", "man-running", "rainbow"):
        assert mirrors[name], name
    for name in (
        *("arrow_right", "one", "abc", "clock3", "point_left", "point_right", "mag", "mag_right", "first_quarter_moon"),
        *(
            "chart_with_upwards_trend",
            "japan",
            "100",
            "convenience_store",
            "sos",
            "aries",
            "left-facing_fist",
            "musical_score",
        ),
    ):
        assert not mirrors[name], name
    assert [one.name for one in by_frequency(classes)[:3]] == ["sagittarius", "scorpion", "slightly_smiling_face"]


def test_the_real_drawings_cover_most_classes(real_drawings):
    tarballs, codes = real_drawings
    covered = {
        vendor: sum(code in files for code in codes) for vendor, files in read_drawings(tarballs, DRAWINGS).items()
    }
    assert covered == {"noto-v1": 1159, "emojione": 1036, "emojione-v1": 881, "openmoji": 1536}
