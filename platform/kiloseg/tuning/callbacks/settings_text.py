"""Writes the settings of a trial as one line for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def settings_text(overrides: Mapping[str, Any]) -> str:
    """Returns a trial's settings as NAME=VALUE with the last part of each name, such as "embed_dim=16 kind=all lr=0.003"."""
    return " ".join(f"{name.rpartition('.')[2]}={value_text(value)}" for name, value in overrides.items())


def flags_text(overrides: Mapping[str, Any]) -> str:
    """Returns settings by dotted names as flags of a command line, such as "--model.embed-dim 16 --optimizer.lr 0.003"."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in overrides.items())


def value_text(value: Any) -> str:
    """Returns a setting's value, a real number with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
