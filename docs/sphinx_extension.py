"""What the documentation needs beyond Sphinx's own extensions.

- Docstrings of this project are plain text with code between single backticks: signs that would be markup are escaped.
- Formulas become MathML, which browsers draw by themselves, so that pages need no network.
- Pages of the repository (CONTRIBUTING.md, datasets/README.md, ...) are included in the documentation: their links are rewritten.
- `{command} kiloseg ...` shows what a command prints, and `{public-names} MODULE` lists the names of its face.
- A public name that no page of the reference describes is a warning, and `make docs` makes warnings errors.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[1]

PAGES = {
    "CHANGELOG.md": "development/changelog.md",
    "CONTRIBUTING.md": "development/contributing.md",
    "README.md": "index.md",
    "SECURITY.md": "development/security.md",
    "benchmarks/README.md": "benchmarks.md",
    "datasets/README.md": "how-to/datasets.md",
    "experiments/LOG.md": "log.md",
}
"""Pages that lie outside docs/, and the page that includes each."""

FACES = (
    "kiloseg.inference",
    "kiloseg",
    "kiloseg.inference",
    "kiloseg.losses",
    "kiloseg.memory",
    "kiloseg.metrics",
    "kiloseg.models",
)
"""Modules whose `__all__` is public."""

FIELDS = ("attribute", "data", "property")
"""What autodoc calls the things that have a value and no arguments."""

logger = logging.getLogger(__name__)


def escape_docstring(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Escapes what is markup to reStructuredText, such as the bars of a norm, outside code."""
    literal: int | None = None
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None:
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = (re.sub(r"([|*]|\b_\B|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2])
            # "C." at the beginning of a text would be the third item of a list.
            lines[number] = re.sub(r"^(\s*|.*?: )([A-Z]\.)(?=\s|$)", r"\1\\\2", "".join(parts))
        if line.rstrip().endswith("::"):
            literal = indent
    if what in FIELDS:
        _escaped[name] = list(lines)


def leave_attributes(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Keeps the docstring of a field from napoleon, which takes what precedes a colon for a type."""
    if what in FIELDS:
        lines[:] = _escaped.pop(name, lines)


_escaped: dict[str, list[str]] = {}


def without_signature(
    app: Sphinx, what: str, name: str, found: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Leaves out the arguments of a dataclass, which are its fields and described below it."""
    return ("", None) if what == "class" and dataclasses.is_dataclass(found) else None


def mathml(node: nodes.math | nodes.math_block, *, as_block: bool) -> str:
    """A formula as MathML; what cannot be translated is a warning."""
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        logger.warning("the formula %r: %s", node.astext(), error, location=node, type="math")
        return node.astext()


def math_inline(translator: Any, node: nodes.math) -> None:
    """Writes a formula inside a line."""
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def math_block(translator: Any, node: nodes.math_block) -> None:
    """Writes a formula on lines of its own."""
    translator.body.append(f'<div class="formula">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


class CommandOutput(SphinxDirective):
    """Shows what a command of kiloseg prints."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The output as a block of text."""
        words = shlex.split(self.arguments[0])
        command = [sys.executable, "-c", "import sys; from kiloseg.cli import main; main(sys.argv[1:])", *words[1:]]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "platform"), "COLUMNS": "86", "NO_COLOR": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            logger.warning("%s: %s", self.arguments[0], done.stderr, location=self.get_location(), type="command")
        shown = f"$ {self.arguments[0]}\n{done.stdout}"
        return [nodes.literal_block(shown, shown, language="text")]


class PublicNames(SphinxDirective):
    """Lists the public names of a module with the first line of each docstring."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A list with the first sentence of each docstring."""
        face = self.arguments[0]
        module = importlib.import_module(face)
        items = nodes.bullet_list()
        for name in sorted(module.__all__, key=str.lower):
            found = getattr(module, name)
            sentence = (found.__doc__ or "").partition("\n")[0] if callable(found) else ""
            paragraph = nodes.paragraph()
            paragraph += nodes.literal(text=f"{face}.{name}")
            for number, part in enumerate(re.split("`", f": {sentence}" if sentence else "")):
                paragraph += nodes.literal(text=part) if number % 2 else nodes.Text(part)
            items += nodes.list_item("", paragraph)
        return [items]


def rewrite_page(app: Sphinx, docname: str, content: list[str]) -> None:
    """Rewrites the links of a page of docs/."""
    content[0] = with_links(app, content[0], Path(app.env.doc2path(docname)).parent, docname)


def rewrite_included(app: Sphinx, relative: Path, docname: str, content: list[str]) -> None:
    """Rewrites the links of a page that lies elsewhere and is included in one of docs/."""
    # MyST gives the last part of the including page's name alone.
    content[0] = with_links(app, content[0], (Path(app.srcdir) / relative).resolve().parent, app.env.docname)


def with_links(app: Sphinx, text: str, folder: Path, docname: str) -> str:
    """A page's text with links that lead from `docname`, where it is shown, instead of from `folder`, where it lies.

    A link to a page of the repository that is included in the documentation leads to the page that includes it.
    """
    shown = Path(app.env.doc2path(docname)).parent

    def rewritten(match: re.Match[str]) -> str:
        target, hash_, anchor = match[1].partition("#")
        if "://" in target or not target:
            return match[0]
        found = (folder / target).resolve()
        if not found.exists() or not found.is_relative_to(ROOT):
            logger.warning("the link to %s leads nowhere", match[1], location=docname, type="link")
            return match[0]
        name = found.relative_to(ROOT).as_posix()
        found = Path(app.srcdir) / PAGES[name] if name in PAGES else found
        return f"]({Path(os.path.relpath(found, shown)).as_posix()}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", rewritten, text)


def resolve(name: str) -> Any:
    """The object that a dotted name stands for; None where there is none, as for a field of an instance."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None


def check_public_names(app: Sphinx, environment: BuildEnvironment) -> None:
    """Warns of every public name that has no docstring or no place in the reference."""
    names = set(environment.get_domain("py").data["objects"])
    objects = {id(resolve(name)) for name in names}
    for face in FACES:
        module = importlib.import_module(face)
        for name in module.__all__:
            found = getattr(module, name)
            if callable(found) and not found.__doc__:
                logger.warning("%s.%s has no docstring", face, name, type="public")
            # Small numbers are one object everywhere, and a module that can be called is described as its function.
            described = f"{face}.{name}" in names or (id(found) in objects and not isinstance(found, int))
            if not described and not isinstance(found, ModuleType):
                logger.warning("%s.%s is public, and no page of docs/reference describes it", face, name, type="public")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the above to Sphinx."""
    app.connect("autodoc-process-docstring", escape_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", leave_attributes, priority=600)  # after it
    app.connect("autodoc-process-signature", without_signature)
    app.add_directive("command", CommandOutput)
    app.add_directive("public-names", PublicNames)
    app.add_html_math_renderer("mathml", (math_inline, None), (math_block, None))
    app.connect("source-read", rewrite_page)
    app.connect("include-read", rewrite_included)
    app.connect("env-check-consistency", check_public_names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
