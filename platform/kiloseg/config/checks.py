"""Checks of single settings."""

from __future__ import annotations

import math
import typing
from typing import Any


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raises ValueError unless the condition holds and `value` is no NaN or infinity; the message says what was expected."""
    finite = not isinstance(value, float) or math.isfinite(value)
    if not (condition and finite):
        raise ValueError(f"{name} = {value!r}: expected {expected}")


def require_word(name: str, value: object, words: Any) -> None:
    """Raises ValueError unless `value` is one of the words of the Literal type `words`."""
    choices = typing.get_args(words)
    require(value in choices, name, value, f"one of {', '.join(choices)}")
