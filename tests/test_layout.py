"""Who may import whom: a rank for every module, read from the imports that are written down."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "kiloseg"

RANKS = {
    "config": 0,
    "native": 0,
    "tiles": 0,
    "figures": 0,
    "neighbours": 0.5,
    "upsample": 0.5,
    "notice": 0,
    "services": 0,
    "identity": 0,
    "presets": 1,
    "data": 1,
    "models": 1,
    "losses": 1,
    "metrics": 1,
    "memory": 1,
    "tracking": 1,
    "meters": 1,
    "checkpoint": 1.5,
    "outbox": 1.5,
    "lease": 1.5,
    "command": 2,
    "optimizer": 2,
    "evaluate": 2,
    "step": 2,
    "memory.planner": 3,
    "summary": 3,
    "train": 3,
    "cluster": 4,
    "reporter": 4,
    "recorder": 4.5,
    "progress": 4.5,
    "resumption": 4.5,
    "storage": 4.5,
    "staging": 4.5,
    "process_group": 4,
    "trial": 4.5,
    "study": 4.5,
    "search": 5,
}
"""Rank of each module or folder of modules; an import leads to a lower rank, or stays in its folder.

A module of a folder may have a rank of its own. Its folder's `__init__` then names it for type checkers, and imports it when
it is asked for and not before."""

ONLY_IN = {
    "ray": {
        "cluster",
        "process_group",
        "reporter",
        "recorder",
        "progress",
        "resumption",
        "storage",
        "staging",
        "trial",
        "study",
        "search",
        "data.cluster",
    },
    "mlflow": {"tracking"},
    "optuna": {"search"},
}
"""Packages that a core without search and tracking does not have, and where they are imported."""

CORE = [group for group, rank in RANKS.items() if rank <= 3 and group not in ("tracking", "outbox", "summary")]


def imports(source, package):
    """Absolute names of all modules that a source text imports, also inside functions and under TYPE_CHECKING.

    `from a import b` gives "a.b", which may name a module or something in one. `package` is what a leading dot means.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *filter(None, [node.module])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def ranked(parts):
    """The name in RANKS of a module of the package, given as the parts of its name: itself, or its folder."""
    return ".".join(parts[:2]) if ".".join(parts[:2]) in RANKS else parts[0]


def group_of(path):
    """The name in RANKS of a file of the package."""
    return ranked(path.relative_to(PACKAGE).with_suffix("").parts)


def name_of(path):
    """The name in ONLY_IN of a file of the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def package_of(path):
    return ".".join(path.relative_to(ROOT / "platform").parent.parts)


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def groups_imported(source, package="kiloseg"):
    """Groups of the package that a source text imports from."""
    names = [name.split(".") for name in imports(source, package)]
    return {ranked(name[1:]) if len(name) > 1 else "__init__" for name in names if name[0] == "kiloseg"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import kiloseg.train", {"train"}),
        ("from kiloseg import train, config", {"train", "config"}),
        ("from kiloseg.models.nearest import nearest_class as n", {"models"}),
        ("from kiloseg.memory.planner import plan", {"memory.planner"}),
        ("from kiloseg.memory import planner, peak", {"memory.planner", "memory"}),
        ("def f():\n    if True:\n        from kiloseg.search import search", {"search"}),
        ("if TYPE_CHECKING:\n    import kiloseg.trial as t", {"trial"}),
        ("try:\n    from . import trial\nexcept ImportError:\n    from .models import Segmenter", {"trial", "models"}),
        ("import kiloseg", {"__init__"}),
        ("import torch, kilosegment.train", set()),
    ],
)
def test_every_way_to_import_is_seen(source, expected):
    assert groups_imported(source) == expected
    assert groups_imported("from ..losses import objective", "kiloseg.models") == {"losses"}


def test_every_module_has_a_rank():
    assert {group_of(path) for path in modules()} == set(RANKS)
    assert groups_imported((PACKAGE / "__init__.py").read_text()) == set()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_lead_downwards(path):
    group = group_of(path)
    own = {name for name in RANKS if name.startswith(f"{group}.")} if path.name == "__init__.py" else set()
    for imported in groups_imported(path.read_text(), package_of(path)) - {group} - own:
        assert imported in RANKS, f"{path.name} imports kiloseg.{imported}, which has no rank"
        assert RANKS[imported] < RANKS[group], f"{group} ({RANKS[group]}) imports {imported} ({RANKS[imported]})"


def test_memory_knows_neither_networks_nor_losses_until_it_plans():
    for path in (PACKAGE / "memory").glob("*.py"):
        if group_of(path) == "memory":
            assert not groups_imported(path.read_text(), package_of(path)) & {"models", "losses"}, path.name
    source = """
from kiloseg import memory
higher = ("kiloseg.models", "kiloseg.losses", "kiloseg.memory.planner")
print([name for name in higher if name in sys.modules])
from kiloseg.memory import plan
print([name for name in higher if name in sys.modules], plan.__name__)
try:
    memory.plans
except AttributeError as error:
    print(error)
"""
    assert run_blocked(ONLY_IN, source).splitlines() == [
        "[]",
        "['kiloseg.models', 'kiloseg.losses', 'kiloseg.memory.planner'] plan",
        "module 'kiloseg.memory' has no attribute 'plans'",
    ]


@pytest.mark.parametrize("name", ONLY_IN)
def test_search_and_tracking_are_imported_where_they_belong(name):
    importers = {
        name_of(path)
        for path in modules()
        if any(imported.split(".")[0] == name for imported in imports(path.read_text(), package_of(path)))
    }
    assert importers == ONLY_IN[name]


def run_blocked(blocked, source):
    """Runs `source` in a Python that finds none of the `blocked` packages; what it prints."""
    blocker = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {tuple(blocked)!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, {str(ROOT / "platform")!r})
"""
    done = subprocess.run([sys.executable, "-c", blocker + source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def core_files():
    apart = set().union(*ONLY_IN.values())
    return [path for path in modules() if group_of(path) in CORE and name_of(path) not in apart]


def import_all(files):
    names = [".".join(path.relative_to(ROOT / "platform").with_suffix("").parts) for path in files]
    return "".join(f"import {name.removesuffix('.__init__')}\n" for name in names)


def test_core_needs_neither_ray_nor_mlflow_nor_optuna():
    source = import_all(core_files()) + "print(len([name for name in sys.modules if name.startswith('kiloseg.')]))"
    assert int(run_blocked(ONLY_IN, source)) >= len(core_files())


def test_building_a_data_set_needs_no_torch():
    source = "import kiloseg.data.build, kiloseg.data.index\nprint('torch' in sys.modules)"
    assert run_blocked(["torchvision"], source) == "False\n", "a builder's processes each pay for what is imported"
    assert run_blocked(["torch", "torchvision"], source) == "False\n"


def test_processes_around_a_worker_import_no_torch():
    """Tune's actor and Train's controller, two processes a trial, would each take 2 s longer to start."""
    source = """
import sys
from ray.tune.integration.ray_train import TuneReportCallback
from kiloseg.cluster import Resources
from kiloseg.trial import _trainer_class, run_trial
_trainer_class(Resources())
print("torch" in sys.modules)
"""
    assert run_blocked([], source) == "False\n"


def test_shards_are_written_with_numpy_and_pillow_alone():
    blocked = ["torch", "torchvision", "pyarrow", "webdataset", "tqdm", "tyro", "matplotlib"]
    assert run_blocked(blocked, "import kiloseg.data.shards\nprint('imported')") == "imported\n"


def test_settings_need_nothing_but_python():
    blocked = ["torch", "numpy", "tyro", "PIL", "webdataset"]
    assert run_blocked(blocked, "from kiloseg.config import Config\nprint(Config().model.arch)") == "deeplabv3plus\n"


def test_source_roots_are_no_packages():
    for folder in ("platform", "datasets", "experiments", "tests"):
        assert (ROOT / folder).is_dir()
        assert not (ROOT / folder / "__init__.py").exists(), folder


@pytest.mark.parametrize("first", ["", "platform", "platform:."])
def test_pythons_own_platform_module_is_found(first, tmp_path):
    source = "import platform, sys; print(sys.path[:2]); print(platform.python_version())"
    path = ":".join(str(ROOT / folder) for folder in filter(None, first.split(":")))
    for folder in (ROOT, tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", source], cwd=folder, env={"PYTHONPATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        searched, version = done.stdout.splitlines()
        assert version == ".".join(map(str, sys.version_info[:3]))
        assert path.partition(":")[0] in searched


EXPERIMENTS = sorted((ROOT / "experiments").glob("*.py"))


def test_experiments_import_the_package_and_nothing_else_of_this_repository():
    folders = ("benchmarks", "datasets", "experiments", "tests")
    local = set(folders) | {other.stem for folder in folders for other in (ROOT / folder).glob("*.py")}
    assert EXPERIMENTS
    for path in EXPERIMENTS:
        names = imports(path.read_text(), "")
        assert not {name for name in names if name.split(".")[0] in local}, path.name
        assert "kiloseg" in {name.split(".")[0] for name in names}, path.name


def test_experiments_take_the_library_beside_them():
    """Or a submitted job would run the library that is installed on the cluster."""
    line = 'sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))'
    for path in EXPERIMENTS:
        lines = path.read_text().splitlines()
        first = next(number for number, text in enumerate(lines) if text.startswith("from kiloseg"))
        assert line in lines[:first], path.name


def test_builders_of_data_sets_know_the_format_and_nothing_of_training():
    builders = sorted((ROOT / "datasets").glob("*.py"))
    assert set().union(*(groups_imported(path.read_text(), "") for path in builders)) == {"data"}
