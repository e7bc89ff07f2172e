"""Experiments as a user starts them, and what they say where they refuse."""

import contextlib
import io
import re
import runpy
import sys
from unittest import mock


def words_of(flags):
    """A command line's words for {name: value}."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def quick_search(data, runs, more):
    """Words of a search whose trials take seconds; `more` flags besides, by name."""
    flags = {
        "data.path": data,
        "data.crop": 64,
        "data.loader-workers": 0,
        "model.backbone": "test_resnet",
        "model.weights": "none",
        "trainer.batch-size": 8,
        "optimizer.warmup-steps": 0,
        "runs": runs,
    }
    return words_of(flags | more)


def said(script, *words):
    """Exit code, output and complaints of a script.

    It runs in this process, where the libraries that it imports are there already: a fresh one takes seconds for them.
    """
    output, complaints, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", [str(script), *words]),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(complaints),
    ):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:  # with a message where there is something to complain of, which Python would print
            code = end.code or 0
    return code, output.getvalue(), f"{complaints.getvalue()} {code}"


def assert_refused(script, words, message):
    """That a script says so, in words and without a trace."""
    code, _, complaints = said(script, *words)
    assert code != 0
    # Without the boxes that tyro draws.
    assert message in " ".join(re.sub("[\u2500-\u257f]", " ", complaints).split()), complaints
    assert "Traceback" not in complaints
