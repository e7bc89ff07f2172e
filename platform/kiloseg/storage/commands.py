"""Writes commands that a message suggests, so that they can be pasted into a shell as they are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path


def shell(*words: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Returns a command line with every word quoted where a shell needs it.

    Args:
        words: the program and its arguments. A program that is installed beside this Python, such as mlflow, is named by its
            path, since its folder need not be in PATH; python stands for this Python itself.
        env: environment variables to set for the command.
    """
    program, *arguments = map(str, words)
    python = Path(sys.executable)
    beside = python if program == "python" else python.with_name(program)
    if beside.is_file():
        program = str(beside)
    return " ".join(
        [*(f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()), shlex.join([program, *arguments])]
    )
