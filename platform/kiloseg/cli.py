"""How an experiment runs as a command: a preset has what is not given, and mistakes end it with their message alone."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import tyro

from kiloseg.presets import PRESETS
from kiloseg.storage.lease import StudyRunningError

ArgumentsT = TypeVar("ArgumentsT", bound="Preset")

REFUSALS = (ValueError, ConnectionError, StudyRunningError)
"""Errors whose message says what is wrong and how to mend it."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Base of the arguments of an experiment whose field `run` is a Config."""

    preset: str = "emoji"
    """Where settings come from that are not given; `experiments/train.py --list` prints all."""


def run(main: Callable[[ArgumentsT], object], arguments: type[ArgumentsT], description: str | None) -> None:
    """Parses the command line and runs the experiment; one that is refused exits with 1 and what is wrong.

    Args:
        main: the experiment.
        arguments: what it takes.
        description: for --help.
    """
    try:
        main(parse(arguments, sys.argv[1:], description))
    except REFUSALS as error:
        raise SystemExit("\n".join([str(error), *getattr(error, "__notes__", [])])) from error


def parse(arguments: type[ArgumentsT], words: Sequence[str], description: str | None) -> ArgumentsT:
    """The arguments of a command line; what it does not give is that of its preset.

    Raises:
        ValueError: there is no such preset, or settings that cannot work.
    """
    # First, since it says what the other settings are.
    asks_for_help = {"-h", "--help"} & set(words)
    base = _with_preset(Preset, arguments.preset)
    chosen, _ = tyro.cli(base, args=[word for word in words if word not in asks_for_help], return_unknown_args=True)
    if chosen.preset not in PRESETS:
        raise ValueError(f"--preset {chosen.preset!r} is not known; there are: {', '.join(PRESETS)}")
    return tyro.cli(_with_preset(arguments, chosen.preset), args=words, description=description)


def _with_preset(arguments: type[ArgumentsT], preset: str) -> type[ArgumentsT]:
    """The same with other defaults."""
    changed: list[tuple[str, Any, Any]] = [("preset", str, field(default=preset))]
    hints = typing.get_type_hints(arguments, include_extras=True)
    if "run" in hints:
        changed.append(("run", hints["run"], field(default=PRESETS[preset].config)))
    made = dataclasses.make_dataclass(arguments.__name__, changed, bases=(arguments,), frozen=True, kw_only=True)
    made.__doc__ = arguments.__doc__
    return made
