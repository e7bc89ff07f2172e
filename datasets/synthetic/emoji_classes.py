"""Defines the classes of the emoji data set: which emoji there are, which are one class, and which may be mirrored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from kiloseg.storage.errors import DataError
from synthetic.emoji_packages import code_of


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """Holds one class: an emoji, with those that some vendor draws as the same picture."""

    code: str
    """The code points of the emoji that is drawn, lower case, without fe0f; its picture has this name in every package."""
    name: str
    """The unique name, such as grinning or flag-eg."""
    category: str
    subcategory: str
    mirrors: bool
    """Whether it stays the same emoji when left and right are exchanged."""
    twins: tuple[str, ...] = ()
    """The names of the emoji that were merged into this class and are not drawn."""


UNMIRRORED_CATEGORIES = frozenset({"Symbols", "Flags"})
"""These hold arrows, letters, digits, keycaps, signs, zodiac and player buttons: many mean something else when mirrored, and those
that are symmetric lose nothing."""
UNMIRRORED_SUBCATEGORIES = frozenset(
    {
        "time",  # clocks
        "award-medal",  # 1, 2, 3
        "book-paper",  # text, and the side that a book opens to
        "computer",  # keyboards, calculators
        "emotion",  # 100, Zzz, speech and anger signs
        "mail",  # text and the direction of motion
        "money",  # currency signs, rising charts
        "music",  # notes and scores
        "office",  # calendars, charts, text
        "phone",  # digits
        "place-map",  # geography
        "writing",  # the hand that writes
    }
)
UNMIRRORED_WORDS = frozenset(
    {
        *("left", "leftwards", "right", "rightwards", "facing", "clockwise", "anticlockwise"),
        *("moon",),  # waxing and waning are mirror images
        *("chart", "trend"),
        *("text", "sign", "signs", "symbol", "symbols", "letter", "letters", "number", "digit", "dollar", "money"),
    }
)
"""These words in an emoji's names refer to a side, or to something to be read."""
UNMIRRORED_NAMES = frozenset(
    {
        *("teacher", "male-teacher", "female-teacher"),  # a sum on the blackboard
        *("bank", "convenience_store", "hotel", "love_hotel", "school"),  # $, 24, H, a clock
        *("busstop", "motorway", "placard", "racing_car", "statue_of_liberty"),
        *("8ball", "black_joker", "flower_playing_cards", "mahjong", "slot_machine"),
        *("admission_tickets", "identification_card", "red_envelope", "ticket", "vhs"),
        *("elevator", "kimono", "musical_keyboard", "sleeping", "x-ray"),
    }
)
"""These pictures hold writing or have a side in some vendor's drawing, though no word or subcategory says so; they were found by
looking at all of them."""


def base_emoji(table: bytes, pictures: Iterable[Collection[str]]) -> list[Emoji]:
    """Returns the emoji that can become classes, in Unicode's order.

    Those are all base emoji (no skin tones) of emoji.json that no newer code replaces and every vendor draws. It leaves out the
    Component entries, which are parts of others, and flags, most of which are known by their text alone.

    Args:
        table: the content of emoji.json.
        pictures: for each vendor, the codes that it draws.

    Raises:
        DataError: The content of emoji.json is not as expected.
    """
    pictures = list(pictures)
    chosen = []
    try:
        entries = sorted(json.loads(table), key=lambda entry: (entry["sort_order"], entry["unified"]))
        for entry in entries:
            if entry["category"] in ("Component", "Flags") or entry.get("obsoleted_by"):
                continue
            code = code_of(entry["unified"])
            if all(code in codes for codes in pictures):
                names = [entry["name"] or "", *entry["short_names"]]
                chosen.append(
                    Emoji(
                        code=code,
                        name=entry["short_name"],
                        category=entry["category"],
                        subcategory=entry["subcategory"],
                        mirrors=may_mirror(entry["category"], entry["subcategory"], names),
                    )
                )
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"emoji.json cannot be read ({type(error).__name__}: {error}); expected the list of emoji-datasource 16"
        ) from error
    return chosen


def may_mirror(category: str, subcategory: str, names: list[str]) -> bool:
    """Whether an emoji stays itself when left and right are exchanged: no text, arrow, clock, map, chart or pointing hand.

    This is decided by category, subcategory and the words of its names (the long one first, then the short ones).
    """
    words = {word for name in names for word in re.findall(r"[a-z]+", name.lower())}
    return not (
        category in UNMIRRORED_CATEGORIES
        or subcategory in UNMIRRORED_SUBCATEGORIES
        or words & UNMIRRORED_WORDS
        or UNMIRRORED_NAMES & set(names)
    )


def merge_twins(emoji: list[Emoji], twins: Iterable[tuple[int, int]]) -> list[Emoji]:
    """Merges all emoji that are linked by pairs of twins into one class; the first of them is drawn.

    Args:
        emoji: the emoji in the order of `base_emoji`.
        twins: the pairs of positions in `emoji`.
    """
    first = list(range(len(emoji)))

    def root(position: int) -> int:
        while first[position] != position:
            position = first[position]
        return position

    for a, b in twins:
        low, high = sorted((root(a), root(b)))
        first[high] = low
    merged: dict[int, list[str]] = {}
    for position, one in enumerate(emoji):
        merged.setdefault(root(position), []).append(one.name)
    return [
        Emoji(
            code=emoji[position].code,
            name=emoji[position].name,
            category=emoji[position].category,
            subcategory=emoji[position].subcategory,
            mirrors=emoji[position].mirrors,
            twins=tuple(names[1:]),
        )
        for position, names in merged.items()
    ]


def by_frequency(classes: list[Emoji]) -> list[Emoji]:
    """Returns the classes in the order of their frequency in training, which is random.

    They are shuffled by a digest of the code, so the first N are a fair selection from all categories, whatever the seed.
    """
    return sorted(classes, key=lambda one: hashlib.sha256(one.code.encode()).hexdigest())
