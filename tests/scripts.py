"""Experiments as a user starts them, and what they say where they refuse."""

import re


def words_of(flags):
    """A command line's words for {name: value}."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def assert_refused(done, message):
    """That a script which has ended said so, in words and without a trace."""
    assert done.returncode != 0
    said = " ".join(re.sub("[\u2500-\u257f]", " ", done.stderr).split())  # without the boxes that tyro draws
    assert message in said, done.stderr
    assert "Traceback" not in done.stderr
