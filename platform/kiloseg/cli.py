"""`kiloseg COMMAND`, and how an experiment runs as a command.

A preset has what is not given, and mistakes end a command with their message alone. A command's module is imported when it
is asked for, and imports torch when it runs: --help is there at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import tyro

from kiloseg.presets import PRESETS
from kiloseg.storage.lease import StudyRunningError

ArgumentsT = TypeVar("ArgumentsT")
PresetT = TypeVar("PresetT", bound="Preset")

REFUSALS = (ValueError, ConnectionError, StudyRunningError)
"""Errors whose message says what is wrong and how to mend it."""


class Command(NamedTuple):
    """Where a command is."""

    module: str
    """Has a function `main(arguments)`, whose result is the exit code."""
    does: str
    """A line for --help."""
    arguments: str = "Arguments"
    """Name of the class of its arguments."""


COMMANDS = {
    "train": Command("kiloseg.commands.train", "train a model and record it in MLflow"),
    "plan": Command("kiloseg.commands.plan", "say how much memory a run takes, without running it"),
    "evaluate": Command("kiloseg.commands.evaluate", "measure a trained model on a data set"),
    "predict": Command("kiloseg.commands.predict", "label images with a trained model"),
    "classes": Command("kiloseg.commands.classes", "list or change the classes of a trained model"),
    "describe": Command("kiloseg.data.describe", "print and draw what a data set holds"),
    "verify": Command("kiloseg.data.verify", "check every byte of a data set"),
    "services": Command("kiloseg.tracking.services", "run MLflow on PostgreSQL", "Services"),
}
"""What `kiloseg` can do; studies are scripts in experiments/."""

COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Base of the arguments of an experiment whose field `run` is a Config."""

    preset: str = "emoji"
    """Where settings come from that are not given; `experiments/train.py --list` prints all."""


def main(words: Sequence[str] | None = None) -> None:
    """The `kiloseg` command.

    Args:
        words: its command line, without the program's name; None: this process's.
    """
    words = sys.argv[1:] if words is None else words
    first = words[0] if words else "--help"
    if first in COMPLETION:
        tyro.extras.subcommand_cli_from_dict(
            {name: _arguments(command) for name, command in COMMANDS.items()}, prog="kiloseg", args=words
        )
    elif first in ("-h", "--help"):
        print(_help())
    elif first == "--version":
        print(importlib.import_module("kiloseg").__version__)
    elif first not in COMMANDS:
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        raise SystemExit(f"kiloseg {first}: no such command{f'; did you mean {near[0]}?' if near else ''}\n\n{_help()}")
    else:
        command = COMMANDS[first]
        module = importlib.import_module(command.module)
        run(module.main, _arguments(command), module.__doc__, words=words[1:], prog=f"kiloseg {first}")


def _arguments(command: Command) -> Any:
    return getattr(importlib.import_module(command.module), command.arguments)


def _help() -> str:
    lines = [f"    {name:<{max(map(len, COMMANDS))}}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: kiloseg COMMAND ...",
            "",
            "Semantic segmentation over thousands of classes on one GPU.",
            "",
            *lines,
            "",
            "kiloseg COMMAND --help says what a command takes. Completion by the tab key, for bash, zsh or tcsh:",
            "    kiloseg --tyro-write-completion bash ~/.local/share/bash-completion/completions/kiloseg",
        ]
    )


def run(
    main: Callable[[ArgumentsT], object],
    arguments: type[ArgumentsT],
    description: str | None,
    *,
    words: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Parses the command line and runs a command; one that is refused exits with 1 and what is wrong.

    Args:
        main: the command; a number that it returns is the exit code.
        arguments: what it takes; with a preset for what is not given if it is a Preset.
        description: for --help.
        words: the command line, None for this process's.
        prog: what --help calls it, None for the script's name.
    """
    words = sys.argv[1:] if words is None else words
    try:
        if issubclass(arguments, Preset):
            parsed: Any = parse(arguments, words, description, prog=prog)
        else:
            parsed = tyro.cli(arguments, args=words, description=description, prog=prog)
        code = main(parsed)
    except REFUSALS as error:
        raise SystemExit("\n".join([str(error), *getattr(error, "__notes__", [])])) from error
    if isinstance(code, int) and code:
        raise SystemExit(code)


def parse(
    arguments: type[PresetT], words: Sequence[str], description: str | None, *, prog: str | None = None
) -> PresetT:
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
    return tyro.cli(_with_preset(arguments, chosen.preset), args=words, description=description, prog=prog)


def _with_preset(arguments: type[PresetT], preset: str) -> type[PresetT]:
    """The same with other defaults."""
    changed: list[tuple[str, Any, Any]] = [("preset", str, field(default=preset))]
    hints = typing.get_type_hints(arguments, include_extras=True)
    if "run" in hints:
        changed.append(("run", hints["run"], field(default=PRESETS[preset].config)))
    made = dataclasses.make_dataclass(arguments.__name__, changed, bases=(arguments,), frozen=True, kw_only=True)
    made.__doc__ = arguments.__doc__
    return made
