"""What the layout promises beyond the import contracts of pyproject.toml, which `make lint` checks."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "kiloseg"

OUTSIDE = {"ray", "mlflow", "optuna"}
"""Packages that a core without search and tracking does not have."""

TOP = {"__init__", "cli", "overrides", "plotting", "presets", "train"}
"""Modules at the top of the package: what a reader needs first. Everything else has a room."""

ABOVE_CORE = {"cli", "tuning", "tracking"}


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


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def test_the_top_of_the_package_holds_what_a_reader_needs_first():
    assert {path.stem for path in PACKAGE.glob("*.py")} == TOP


def test_memory_knows_neither_networks_nor_losses_until_it_plans():
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
    assert run_blocked(OUTSIDE, source).splitlines() == [
        "[]",
        "['kiloseg.models', 'kiloseg.losses', 'kiloseg.memory.planner'] plan",
        "module 'kiloseg.memory' has no attribute 'plans'",
    ]


def rooms_imported(source):
    """Rooms and top modules of the package that a source text imports from."""
    names = [name.split(".") for name in imports(source, "")]
    return {name[1] for name in names if name[0] == "kiloseg"}


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
    """All modules but those of the rooms that need Ray or MLflow, and Triton's kernels."""
    apart = {PACKAGE / "data/writing/cluster.py"}
    return [
        path
        for path in modules()
        if path.relative_to(PACKAGE).with_suffix("").parts[0] not in ABOVE_CORE
        and "triton" not in path.parts
        and path not in apart
    ]


def import_all(files):
    names = [".".join(path.relative_to(ROOT / "platform").with_suffix("").parts) for path in files]
    return "".join(f"import {name.removesuffix('.__init__')}\n" for name in names)


def test_core_needs_neither_ray_nor_mlflow_nor_optuna():
    source = import_all(core_files()) + "print(len([name for name in sys.modules if name.startswith('kiloseg.')]))"
    assert int(run_blocked(OUTSIDE, source)) >= len(core_files()) - 1


def test_building_a_data_set_needs_no_torch():
    source = "import kiloseg.data.writing.build, kiloseg.data.index\nprint('torch' in sys.modules)"
    assert run_blocked(["torchvision"], source) == "False\n", "a builder's processes each pay for what is imported"
    assert run_blocked(["torch", "torchvision"], source) == "False\n"


def test_processes_around_a_worker_import_no_torch():
    """Tune's actor, which also runs Train's controller, would take 2 s longer to start."""
    source = """
import sys
from kiloseg.tuning.cluster import Resources
from kiloseg.tuning.trial import _trainer_class, run_trial
_trainer_class(Resources())
print("torch" in sys.modules)
"""
    assert run_blocked([], source) == "False\n"


def test_shards_are_written_with_numpy_and_pillow_alone():
    blocked = ["torch", "torchvision", "pyarrow", "webdataset", "tqdm", "tyro", "matplotlib"]
    assert run_blocked(blocked, "import kiloseg.data.writing.shard\nprint('imported')") == "imported\n"


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
    assert set().union(*(rooms_imported(path.read_text()) for path in builders)) <= {"data", "storage"}


POSIX_ONLY = {PACKAGE / "tracking/services.py"}
"""Modules that need a POSIX system, and say so when they are imported elsewhere."""


def test_the_library_imports_where_there_is_no_posix():
    """Windows has no fcntl, pwd, grp, resource or termios, no os.geteuid and no signal.SIGKILL or SIGUSR1."""
    strip = """
import os, signal
for module, names in (
    (os, ("fork", "geteuid", "getuid", "killpg", "setsid", "getpgid", "statvfs", "sched_getaffinity", "wait4")),
    (signal, ("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGCHLD", "SIGALRM", "pthread_sigmask", "setitimer")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""
    files = [path for path in core_files() if path not in POSIX_ONLY]
    # What others' packages ask for at import is theirs: they have builds of their own for Windows.
    first = "import numpy, torch, torchvision, timm, pyarrow, matplotlib, filelock, platformdirs, tyro, webdataset\n"
    posix = ["fcntl", "pwd", "grp", "resource", "termios"]
    block = f"for name in {posix!r}:\n    sys.modules.pop(name, None)\n    sys.modules[name] = None\n"
    assert run_blocked([], first + block + strip + import_all(files) + "print('imported')") == "imported\n"


def test_what_needs_posix_says_so():
    done = run_blocked(
        ["pwd"], "try:\n    import kiloseg.tracking.services\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert done.startswith("kiloseg.tracking.services needs a POSIX system (users, Unix sockets, signals)")
