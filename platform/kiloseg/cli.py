"""The command line `kiloseg COMMAND`, and the function that runs an experiment as a command.

Settings that a command line omits come from a preset, and an error ends a command with its message and no traceback. A
command's module is imported only when the command is used, and imports torch only when it runs, so --help is fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import docstring_parser
import tyro

from kiloseg.presets import PRESETS
from kiloseg.storage.lease import StudyRunningError

ArgumentsT = TypeVar("ArgumentsT")
PresetT = TypeVar("PresetT", bound="Preset")

REFUSALS = (ValueError, ConnectionError, StudyRunningError)
"""Errors whose message says what is wrong and how to fix it."""


class Command(NamedTuple):
    """The module of a command, and its line in --help."""

    module: str
    """Name of a module with a function `main(arguments)` that returns the exit code."""
    does: str
    """What the command does, in one line of --help."""
    arguments: str = "Arguments"
    """Name of the class that holds the command's arguments."""


COMMANDS = {
    "train": Command("kiloseg.commands.train", "train a model and record it in MLflow"),
    "plan": Command("kiloseg.commands.plan", "estimate how much memory a run takes, without running it"),
    "best": Command("kiloseg.commands.best", "print the best trials of a search, within an amount of memory"),
    "evaluate": Command("kiloseg.commands.evaluate", "measure a trained model on a data set"),
    "predict": Command("kiloseg.commands.predict", "label images with a trained model"),
    "classes": Command("kiloseg.commands.classes", "list or change the classes of a trained model"),
    "export": Command("kiloseg.commands.export", "write a trained model for other programs and machines"),
    "describe": Command("kiloseg.data.describe", "print and draw the contents of a data set"),
    "verify": Command("kiloseg.data.verify", "check every byte of a data set"),
    "services": Command("kiloseg.tracking.services", "run MLflow on PostgreSQL", "Services"),
}
"""The commands of `kiloseg`; studies are scripts in experiments/."""

HELP = {"-h", "--help"}
COMPLETION = ("--tyro-print-completion", "--tyro-write-completion")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Base of the arguments of an experiment whose field `run` is a Config."""

    preset: str = "emoji"
    """Preset that supplies the settings you omit; `experiments/train.py --list` prints all presets."""


def main(words: Sequence[str] | None = None) -> None:
    """Runs the `kiloseg` command.

    Args:
        words: the command line without the program's name; None: that of this process.
    """
    words = sys.argv[1:] if words is None else words
    first = words[0] if words else "--help"
    if first in COMPLETION:
        tyro.extras.subcommand_cli_from_dict(
            {name: _arguments(command) for name, command in COMMANDS.items()}, prog="kiloseg", args=words
        )
    elif first in HELP:
        print(_help())
    elif first == "--version":
        print(importlib.import_module("kiloseg").__version__)
    elif first not in COMMANDS:
        near = difflib.get_close_matches(first, COMMANDS, n=1)
        raise SystemExit(f"kiloseg {first} is not a command{f'; did you mean {near[0]}?' if near else ''}\n\n{_help()}")
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
            "kiloseg COMMAND --help lists the options of a command. Tab completion for bash, zsh or tcsh:",
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
    """Parses the command line and runs a command; on an expected error it prints the message and exits with 1.

    Args:
        main: the command; if it returns a number, that is the exit code.
        arguments: the class of its arguments; if that is a Preset, the preset supplies omitted settings.
        description: text for --help.
        words: the command line; None for that of this process.
        prog: the program's name in --help; None for the script's name.
    """
    words = sys.argv[1:] if words is None else words
    try:
        if issubclass(arguments, Preset):
            parsed: Any = parse(arguments, words, description, prog=prog)
        else:
            prepare_help(arguments, words)
            parsed = tyro.cli(arguments, args=words, description=description, prog=prog)
        code = main(parsed)
    except REFUSALS as error:
        raise SystemExit("\n".join([str(error), *getattr(error, "__notes__", [])])) from error
    if isinstance(code, int) and code:
        raise SystemExit(code)


def parse(
    arguments: type[PresetT], words: Sequence[str], description: str | None, *, prog: str | None = None
) -> PresetT:
    """Parses a command line into its arguments; omitted settings come from the preset.

    Raises:
        ValueError: there is no such preset, or the settings cannot work.
    """
    # The preset is parsed first because it supplies the defaults of the other settings.
    asks_for_help = HELP & set(words)
    base = _with_preset(Preset, arguments.preset)
    chosen, _ = tyro.cli(base, args=[word for word in words if word not in asks_for_help], return_unknown_args=True)
    if chosen.preset not in PRESETS:
        raise ValueError(f"--preset {chosen.preset!r} is unknown; the presets are: {', '.join(PRESETS)}")
    arguments = _with_preset(arguments, chosen.preset)
    prepare_help(arguments, words)
    return tyro.cli(arguments, args=words, description=description, prog=prog)


def prepare_help(arguments: type, words: Sequence[str]) -> None:
    """Makes each paragraph of the docstrings under the fields one line if `words` ask for help; tyro wraps it again.

    tyro takes the indented lines of a docstring for a list, and would break the text where the source does.

    Args:
        arguments: a dataclass; those that its fields hold are prepared too.
        words: the command line.
    """
    if not HELP & set(words):
        return
    for found in _dataclasses(arguments):
        texts: dict[str, str | None] = {}
        for base in reversed(found.__mro__[:-1]):
            texts |= {param.arg_name: param.description for param in docstring_parser.parse_from_object(base).params}
        for one in dataclasses.fields(found):
            text = texts.get(one.name)
            if text:
                paragraphs = re.split(r"\n\s*\n", text)
                whole = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
                one.metadata = types.MappingProxyType({**one.metadata, "help": whole})  # which tyro prefers


def _dataclasses(kind: Any) -> Iterator[Any]:
    """Yields the dataclasses in a type: itself, those of its fields, and those of a union."""
    if dataclasses.is_dataclass(kind):
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from _dataclasses(hint)
    for part in typing.get_args(kind):
        yield from _dataclasses(part)


def _with_preset(arguments: type[PresetT], preset: str) -> type[PresetT]:
    """Returns the class of arguments with the preset's settings as its defaults."""
    changed: list[tuple[str, Any, Any]] = [("preset", str, field(default=preset))]
    hints = typing.get_type_hints(arguments, include_extras=True)
    if "run" in hints:
        changed.append(("run", hints["run"], field(default=PRESETS[preset].config)))
    made = dataclasses.make_dataclass(arguments.__name__, changed, bases=(arguments,), frozen=True, kw_only=True)
    made.__doc__ = arguments.__doc__
    return made
