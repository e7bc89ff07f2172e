"""Runs a builder as a command: mistakes in its input end it with their message instead of a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

ArgumentsT = TypeVar("ArgumentsT")


def run(build: Callable[[ArgumentsT], object], arguments: type[ArgumentsT]) -> None:
    """Parses the command line and builds; exits with 1 if the input cannot be used, or if a filesystem or cluster does not
    answer."""
    from kiloseg.cli import prepare_help  # not needed by the processes that a build starts

    prepare_help(arguments, sys.argv[1:])
    try:
        build(tyro.cli(arguments))
    except (ConnectionError, ValueError) as error:  # DataError is a ValueError
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        raise SystemExit(1) from None
