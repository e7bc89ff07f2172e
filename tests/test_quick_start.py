"""The tutorial's quick start and the commands of it that the front page shows."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commands(text):
    """The command lines of a page's blocks, in words."""
    return [shlex.split(line) for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE)]


def test_the_front_page_shows_three_of_the_six_commands():
    section = re.split(r"^## ", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.MULTILINE)[1]
    assert section.startswith("Quick start")
    quick_start = commands(section)
    assert len(quick_start) == 6
    # Blocks of code that are not commands need not be words of a shell.
    lines = set(re.findall(r"^    (\S.*)$", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert sum(shlex.join(words) in lines for words in quick_start) == 3
