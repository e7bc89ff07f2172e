"""What the pages say exists: files, links, commands with their flags, and names; and the documentation's own checks see faults."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import said

import kiloseg
from kiloseg.cli import COMMANDS, main
from kiloseg.overrides import flatten

ROOT = Path(__file__).parents[1]
SHOWN_FIRST = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "datasets/README.md",
    "benchmarks/README.md",
)
PAGES = [*(ROOT / name for name in SHOWN_FIRST), ROOT / "experiments/LOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
MANUALS = [path for path in PAGES if path.name not in ("CHANGELOG.md", "LOG.md")]
"""Pages that say how things are now; the others say how they were."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
each_manual = pytest.mark.parametrize("page", MANUALS, ids=lambda path: str(path.relative_to(ROOT)))


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```|^    .*?$", "", text, flags=re.MULTILINE | re.DOTALL))


def blocks(text):
    """Lines of code of a page, continued lines joined, without what a shell ignores."""
    inside, fence = [], None
    for line in text.splitlines():
        if line.startswith("```"):
            fence = None if fence is not None else line.removeprefix("```")
        elif (line.startswith("    ") and fence is None) or fence in ("", "bash", "sh", "shell", "console"):
            inside.append(line.strip())
    return re.sub(r"\s*\\\n\s*", " ", "\n".join(inside)).splitlines()


def commands(text):
    """Command lines of a page: those of its blocks of code, and those in its sentences."""
    sentences = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in [*blocks(text), *sentences]:
        if re.match(r"(python|make|kiloseg|ray job submit|RAY_\w+=|PYTHONPATH=)", line):
            yield re.split(r"\s+#\s|\s{3,}", line)[0].replace("'", '"')


def script_and_words(command):
    """The script of a command line that runs Python, or "-m MODULE", and the words after it; None of any other command."""
    words = shlex.split(command)
    for index, word in enumerate(words):
        if re.fullmatch(r"(\S*/)?python\d?", word) and index + 1 < len(words):
            rest = words[index + 1 :]
            return ("-m " + rest[1], rest[2:]) if rest[0] == "-m" and len(rest) > 1 else (rest[0], rest[1:])
    return None, words


def anchors(path):
    """Anchors of a page's headings, as GitHub and the documentation make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@each_page
def test_links_lead_somewhere(page):
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        name, _, anchor = target.partition("#")
        if "://" in name:
            continue
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            missing.append(target)
    assert not missing


@each_manual
def test_files_that_are_named_exist(page):
    folders = "|".join(
        path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(("runs", "data"))
    )
    named = re.findall(rf"`((?:{folders}|datasets)/[\w./-]+)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists() and name.upper() != name and "NAME" not in name]


@each_manual
def test_commands_that_are_named_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(page.read_text()):
        script, words = script_and_words(command)
        if command.startswith("make "):
            assert words[1] in targets, command
        elif command.startswith("kiloseg ") and not words[1].startswith("-"):
            assert words[1] in COMMANDS, command
        elif script and script.startswith("-m kiloseg"):
            assert importlib.util.find_spec(script.removeprefix("-m ")), command
        elif script and script.endswith(".py") and "/" in script:
            assert (ROOT / script).is_file(), command


def flags_of_pages():
    """Each script that pages name, with the flags that they give it."""
    flags = {}
    for page in MANUALS:
        for command in commands(page.read_text()):
            script, words = script_and_words(command)
            if script and script.split("/")[0] in ("experiments", "datasets", "benchmarks"):
                flags.setdefault(script, set()).update(
                    re.match(r"--[\w.-]+", word)[0] for word in words if re.match(r"--\w", word)
                )
    return sorted((script, flags) for script, flags in flags.items() if flags - {"--help"})


@pytest.mark.parametrize(
    ("script", "flags"), flags_of_pages(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_scripts_take_the_flags_that_pages_give_them(script, flags, monkeypatch):
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    code, output, complaints = said(ROOT / script, "--help")
    assert code == 0, complaints
    offered = set(re.findall(r"--[\w.-]+", output.replace("_", "-")))
    assert flags - {"--help"} <= offered


def test_kiloseg_takes_the_flags_that_pages_give_it(capsys):
    given = {}
    for page in MANUALS:
        for command in commands(page.read_text()):
            words = shlex.split(command)
            if words[0] == "kiloseg" and len(words) > 2:
                given.setdefault(words[1], set()).update(word for word in words[2:] if word.startswith("--"))
    assert {"train", "predict", "evaluate", "verify"} <= given.keys()
    for name, flags in given.items():
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert flags - {"--help"} <= set(re.findall(r"--[\w.-]+", capsys.readouterr().out.replace("_", "-"))), name


@each_manual
def test_names_that_code_imports_exist(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kiloseg":
                assert node.attr in kiloseg.__all__
            if isinstance(node, ast.ImportFrom) and node.module.startswith("kiloseg"):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module


def test_ci_builds_the_documentation():
    assert "make docs" in (ROOT / ".ci/run").read_text().splitlines()
    assert "--fail-on-warning" in (ROOT / "Makefile").read_text()


def test_the_build_sees_faults(tmp_path):
    """A public name without a place in the reference, and links and references that lead nowhere, end it."""
    pytest.importorskip("sphinx")
    (tmp_path / "index.md").write_text(
        "# Title\n\n[file](missing.md) and {py:func}`kiloseg.losses.no_such_loss`\n\n```{eval-rst}\n"
        ".. autofunction:: kiloseg.losses.class_separation\n```\n"
    )
    build = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q", "-c", str(ROOT / "docs")]
    done = subprocess.run([*build, str(tmp_path), str(tmp_path / "out")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "the link to missing.md leads nowhere" in done.stderr
    assert "kiloseg.losses.no_such_loss" in done.stderr
    assert "kiloseg.losses.embedding_cross_entropy is public, and no page" in done.stderr
    assert "kiloseg.losses.class_separation is public" not in done.stderr


def test_the_head_of_the_contributors_page_trains(quick):
    """In a process of its own, since a head stays registered."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (name,) = re.findall(r'@register_head\("(\w+)"\)', block)
    values = flatten(quick) | {"model.head": name, "trainer.steps": 2, "trainer.validate_every": 0}
    source = (
        f"import torch.nn.functional as F\n{block}\nfrom kiloseg.overrides import from_flat\n"
        "from kiloseg.training.loop import train\n"
        f"print(train(from_flat({values!r}), report=lambda *_: None))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "miou" in done.stdout
