"""Experiments as a user starts them, and what they say where they refuse."""

import contextlib
import io
import re
import runpy
import sys
from unittest import mock

import pytest


def words_of(flags):
    """A command line's words for {name: value}."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def assert_refused(script, words, message):
    """That a script says so, in words and without a trace.

    It runs in this process, where the libraries that it imports are there already: a fresh one takes seconds for them.
    """
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [str(script), *words]),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as end,
    ):
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code not in (None, 0)
    whole = f"{said.getvalue()} {end.value.code}"
    assert message in " ".join(re.sub("[\u2500-\u257f]", " ", whole).split()), (
        whole
    )  # without the boxes that tyro draws
    assert "Traceback" not in whole
