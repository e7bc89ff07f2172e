"""How a builder runs as a command: mistakes in its input end it with their message, not with a stack of calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

ArgumentsT = TypeVar("ArgumentsT")


def run(build: Callable[[ArgumentsT], object], arguments: type[ArgumentsT]) -> None:
    """Parses the command line and builds; exits with 1 where the input cannot be built from (a ValueError)."""
    try:
        build(tyro.cli(arguments))
    except ValueError as error:  # DataError is one
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
