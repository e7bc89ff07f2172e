"""Counts what a newcomer has to walk through: lines, files, the longest of them, and circles of imports.

    python docs/tree_size.py                        this checkout
    python docs/tree_size.py OTHER_CHECKOUT         another one, such as a worktree of an older commit

Counted are the files under version control in platform/kiloseg (Python and C) and, as a second column, in datasets, experiments and
benchmarks. A circle is a set of modules each of which can be reached from every other by imports; those under TYPE_CHECKING
do not count.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SUFFIXES = (".py", ".c", ".h")


def tracked(root: Path, *folders: str) -> list[Path]:
    """Source files of a checkout that git knows."""
    listed = subprocess.run(["git", "ls-files", "-z", *folders], cwd=root, capture_output=True, text=True, check=True)
    return [root / name for name in listed.stdout.split("\0") if name.endswith(SUFFIXES)]


def num_lines(path: Path) -> int:
    """Lines of a file, empty ones included."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[tuple[int, str]]:
    """Length in lines, and name, of each function of a Python file; decorators and docstring count."""
    if path.suffix != ".py":
        return []
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found.append(((node.end_lineno or node.lineno) - first + 1, node.name))
    return found


def imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the package that a Python file imports, also inside functions, but not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & modules.keys()
            names |= submodules or {node.module}
    return names & modules.keys()


def circles(package: Path, files: list[Path]) -> list[set[str]]:
    """Sets of modules that import each other in a circle."""
    modules = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
        if path.suffix == ".py"
    }
    below = {name: imported(path, modules) - {name} for name, path in modules.items()}
    reached = {}
    for name in modules:
        seen: set[str] = set()
        ahead = set(below[name])
        while ahead:
            seen |= ahead
            ahead = set().union(*(below[other] for other in ahead)) - seen
        reached[name] = seen
    found: list[set[str]] = []
    for name in sorted(modules):
        circle = {other for other in reached[name] if name in reached[other]}
        if len(circle) > 1 and circle not in found:
            found.append(circle)
    return found


def main(root: Path) -> None:
    """Prints a table of one checkout."""
    package = root / "platform" / "kiloseg"
    library = tracked(root, "platform/kiloseg")
    around = tracked(root, "datasets", "experiments", "benchmarks")
    print(f"{'':24}{'platform':>44}{'datasets, experiments, benchmarks':>44}")
    rows: dict[str, list[str]] = {"lines": [], "files": [], "longest file": [], "longest function": []}
    for files in (library, around):
        rows["lines"].append(f"{sum(map(num_lines, files)):,}")
        rows["files"].append(str(len(files)))
        longest = max(files, key=num_lines)
        rows["longest file"].append(f"{longest.name}, {num_lines(longest)}")
        length, name, path = max((length, name, path.name) for path in files for length, name in functions(path))
        rows["longest function"].append(f"{name} in {path}, {length}")
    rows["modules at the top"] = [str(len([path for path in library if path.parent == package])), "-"]
    found = circles(package, library)
    shown = "; ".join(" <-> ".join(name.removeprefix("kiloseg.") for name in sorted(circle)) for circle in found)
    rows["circles"] = [str(len(found)), "-"]
    for name, (left, right) in rows.items():
        print(f"{name:24}{left:>44}{right:>44}")
    if found:
        print(f"circles: {shown}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parents[1])
