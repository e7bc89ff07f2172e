"""Classes of emoji follow a rule, twins become one, and each split shows them as often as it should."""

from collections import Counter

import numpy as np
import pytest
from small_emoji import CLASSES

from kiloseg.storage.errors import DataError
from synthetic.emoji_bank import read_bank
from synthetic.emoji_choice import Choice
from synthetic.emoji_classes import Emoji, base_emoji, by_frequency, may_mirror, merge_twins


def test_classes_are_those_of_the_rule(small_bank):
    bank, _ = read_bank(small_bank[0])
    assert {one.name for one in bank.classes} == CLASSES
    family = next(one for one in bank.classes if one.name == "man-boy")
    assert family.twins == ("man-girl", "woman-boy")
    assert {one.name for one in bank.classes if not one.mirrors} == {"arrow_right", "one", "clock1"}


@pytest.mark.parametrize(
    ("category", "subcategory", "name", "mirrors"),
    [
        ("Animals & Nature", "animal-mammal", "DOG FACE", True),
        ("People & Body", "hand-single-finger", "WHITE LEFT POINTING BACKHAND INDEX", False),
        ("People & Body", "hands", "leftwards_hand", False),
        ("People & Body", "hand-fingers-closed", "RAISED FIST", True),
        ("Travel & Places", "sky & weather", "FIRST QUARTER MOON SYMBOL", False),
        ("Travel & Places", "sky & weather", "UMBRELLA WITH RAIN DROPS", True),
        ("Travel & Places", "time", "CLOCK FACE TWO OCLOCK", False),
        ("Travel & Places", "place-map", "SILHOUETTE OF JAPAN", False),
        ("Objects", "office", "CHART WITH UPWARDS TREND", False),
        ("Symbols", "alphanum", "NEGATIVE SQUARED AB", False),
        ("Food & Drink", "food-prepared", "BRIGHT BREAD", True),  # words, not parts of words
        ("Activities", "game", "slot_machine", False),
    ],
)
def test_what_would_mean_something_else_is_not_mirrored(category, subcategory, name, mirrors):
    assert may_mirror(category, subcategory, [name]) is mirrors


def test_classes_are_shuffled_by_their_code():
    def named(code):
        return Emoji(code=code, name=code, category="", subcategory="", mirrors=True)

    ordered = [one.code for one in by_frequency([named(f"{code:x}") for code in range(0x1F600, 0x1F650)])]
    assert ordered == [one.code for one in by_frequency([named(code) for code in sorted(ordered)])]
    assert ordered != sorted(ordered)
    fewer = [one.code for one in by_frequency([named(code) for code in sorted(ordered)[::2]])]
    assert [code for code in ordered if code in fewer] == fewer


def test_chains_of_twins_become_one_class_whatever_their_order():
    names = [Emoji(code=c, name=c, category="", subcategory="", mirrors=True) for c in "abcdef"]
    for pairs in ([(0, 4), (2, 4), (1, 5)], [(4, 2), (1, 5), (0, 4)], [(2, 4), (0, 2), (1, 5)]):
        assert [(one.name, one.twins) for one in merge_twins(names, pairs)] == [
            ("a", ("c", "e")),
            ("b", ("f",)),
            ("d", ()),
        ]


def test_a_table_of_another_kind_is_refused():
    for table in (b"[{}]", b"{", b"5"):
        with pytest.raises(DataError, match=r"emoji\.json cannot be read"):
            base_emoji(table, [])


# Choice of classes


def test_classes_follow_zipf_in_train_in_spite_of_themes():
    subcategories = [f"s{number % 7}" for number in range(40)]
    choice = Choice(subcategories, seed=0, zipf=True)
    drawn = [choice.class_ids(np.random.default_rng(index), "train", index) for index in range(4000)]
    assert {len(ids) for ids in drawn} == set(range(6, 15))
    counts = np.bincount(np.concatenate(drawn), minlength=41)[1:]
    expected = 1 / np.arange(1, 41) / sum(1 / np.arange(1, 41)) * counts.sum()
    # Objects of a scene hang together, so the spread is wider than that of single draws.
    assert np.abs(counts / expected - 1).max() < 0.2
    shares = [Counter(subcategories[k - 1] for k in ids).most_common(1)[0][1] / len(ids) for ids in drawn]
    assert 0.6 < np.mean(shares) < 0.8
    even = Choice(subcategories, seed=0, zipf=False)
    flat = np.bincount(np.concatenate([even.class_ids(np.random.default_rng(i), "train", i) for i in range(4000)]))[1:]
    assert flat.max() / flat.min() < 1.3


@pytest.mark.parametrize("split", ["val", "val_style"])
def test_validation_deals_every_class_equally_often_with_themes(split):
    subcategories = [f"s{number // 50}" for number in range(1536)]
    choice = Choice(subcategories, seed=3, zipf=True)
    drawn = [choice.class_ids(np.random.default_rng(index), split, index) for index in range(1500)]
    counts = np.bincount(np.concatenate(drawn), minlength=1537)[1:]
    assert counts.max() - counts.min() <= 2 and counts.min() >= 8
    shares = [Counter(subcategories[k - 1] for k in ids).most_common(1)[0][1] / len(ids) for ids in drawn]
    assert 0.5 < np.mean(shares) < 0.8
    late = Choice(subcategories, seed=3, zipf=True)
    assert late.class_ids(np.random.default_rng(1400), split, 1400) == drawn[1400]
