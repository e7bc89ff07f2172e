"""What the workarounds use of Ray's inside is still there, and nothing else of the package uses any."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from kiloseg.tuning import ray_workarounds
from kiloseg.tuning.ray_workarounds.controller import LEFT_OUT

ROOT = Path(__file__).parents[2]
FOLDER = Path(ray_workarounds.__file__).parent
WORKAROUNDS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")


def source_mentions(owner, attribute):
    """Whether a class, or one that it is derived from, sets an attribute of its instances."""
    pattern = re.compile(rf"\b{attribute}\b")
    return any(pattern.search(inspect.getsource(each)) for each in inspect.getmro(owner) if each is not object)


def is_there(name):
    """Whether a dotted name leads to something: modules, then attributes, then what instances of a class have."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        break
    for part in parts[count:]:
        if hasattr(found, part):
            found = getattr(found, part)
        else:
            return inspect.isclass(found) and source_mentions(found, part)
    return True


@pytest.mark.parametrize("name", ray_workarounds.PRIVATE_NAMES)
def test_private_name_of_ray_is_still_there(name):
    import ray

    file = ray_workarounds.PRIVATE_NAMES[name]
    assert is_there(name), (
        f"Ray {ray.__version__} has no {name} any more, which tuning/ray_workarounds/{file}.py uses: read in its docstring what it "
        "is for, and adapt it, or remove it if the test that is named there passes without it"
    )


def test_a_name_that_is_gone_is_noticed():
    assert not is_there("ray.tune.search.optuna.OptunaSearch._no_such_thing")
    assert not is_there("ray.train._internal.storage._NoSuchSyncer")


@pytest.mark.parametrize("path", WORKAROUNDS, ids=lambda path: path.stem)
def test_workaround_says_when_it_can_go(path):
    """Each names a version of Ray, and a test that exists."""
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert re.search(r"Seen on Ray \d+\.\d+", docstring)
    assert re.search(r"can go", docstring)
    named = re.findall(r"(test_\w+)\.py|(?:::|, )(test_\w+)\b(?!\.py)", docstring)
    tests = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for file, function in named:
        assert not file or file in tests, f"{file}.py is named and is not there"
        assert not function or any(f"def {function}(" in text for text in tests.values()), f"{function} is not there"
    assert named or "as in `kiloseg.tuning.ray_workarounds." in docstring or "benchmarks/" in docstring


def private_uses(text):
    """Names inside Ray that a source text imports or reads: those with a part that begins with an underscore."""
    used = set()
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        used |= {name for name in names if re.match(r"ray\..*\._|ray\._", name)}
    return used


def test_private_names_of_ray_are_used_by_workarounds_alone():
    files = [path for folder in ("platform", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    for path in files:
        if FOLDER not in path.parents:
            assert not private_uses(path.read_text()), path
    assert private_uses("from ray._private import ray_constants")
    assert any(private_uses(path.read_text()) for path in WORKAROUNDS)


def test_ray_has_an_upper_bound_that_the_names_were_seen_on():
    text = (ROOT / "pyproject.toml").read_text()
    (upper,) = re.findall(r'"ray\[[\w,]+\]>=[\d.]+,<(\d+\.\d+)"', text)
    (pinned,) = re.findall(r"^ray==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert upper == f"{pinned[0]}.{int(pinned[1]) + 1}"


def test_a_trainer_still_starts_the_callbacks_that_are_left_out():
    source = inspect.getsource(DataParallelTrainer._create_default_callbacks)
    assert all(name in source for name in LEFT_OUT)
