"""The wheel: all of the package is in it, and it works away from the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "platform/kiloseg/__init__.py").read_text(), re.MULTILINE)[1]


def run(*command, cwd, **environment):
    """Output of a command that knows nothing of the checkout but what its arguments say."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("asks git which files belong to the package")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    return [name for name in listed if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked, tmp_path_factory):
    """Built from a copy, since setuptools leaves folders behind and takes what an earlier build left."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked:
        if name.startswith("platform/") or "/" not in name:
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run(*build, "--wheel-dir", str(folder), str(folder / "source"), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """Python of an environment with the wheel and the libraries of this one, but not its editable install."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    python = folder / "bin" / "python"
    own = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A folder that a .pth file names is searched, and .pth files in it, such as that of an editable install, are not read.
    (Path(own) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    run(*install, str(wheel), cwd=folder)
    return python


def test_the_wheel_holds_every_file_of_the_package(wheel, tracked):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("kiloseg/")}
    wanted = {name.removeprefix("platform/") for name in tracked if name.startswith("platform/kiloseg/")}
    assert inside == wanted
    for some in ("kiloseg/py.typed", "kiloseg/data/labels/ade20k.csv", "kiloseg/ops/cpu/loss.c", "kiloseg/presets.py"):
        assert some in wanted


def test_the_wheel_says_what_it_is(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode().partition("\n\n")[0].splitlines()
        (license_name,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        assert archive.read(license_name) == (ROOT / "LICENSE").read_bytes()
    assert f"Version: {VERSION}" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata


LOSS = """
import importlib.resources, pathlib, sys, torch, kiloseg
from kiloseg.losses import Negatives, embedding_cross_entropy
from kiloseg.ops.cpu.compiler import library
from kiloseg.presets import PRESETS
pixels_BDhw = torch.randn(2, 8, 8, 8, generator=torch.manual_seed(0)).requires_grad_()
table_CD = torch.randn(1000, 8).requires_grad_()
labels_BHW = torch.randint(0, 1000, (2, 32, 32))
loss = embedding_cross_entropy(pixels_BDhw, table_CD, labels_BHW, negatives=Negatives(kind="all"), logit="cosine")
loss.backward()
assert library() is not None
print(kiloseg.__version__, kiloseg.__file__, loss.item(), table_CD.grad.abs().sum().item() > 0)
print(len((importlib.resources.files("kiloseg.data") / "labels" / "ade20k.csv").read_text().splitlines()))
print("glyphs" in PRESETS)
"""


def test_an_installed_kiloseg_works_away_from_the_checkout(python, tmp_path):
    """A loss through the kernel in C, which is compiled from the installed sources."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        pytest.skip("needs a C compiler")
    cache = tmp_path / "cache"
    output = run(str(python), "-c", LOSS, cwd=tmp_path, KILOSEG_CACHE=str(cache)).splitlines()
    version, file, loss, learns = output[0].split()
    assert version == VERSION
    assert Path(file).is_relative_to(python.parents[1])
    assert 5 < float(loss) < 30
    assert learns == "True"
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    assert output[1:] == ["151", "True"]


def test_its_commands_are_installed(python, tmp_path):
    command = str(python.parent / "kiloseg")
    assert run(command, "--version", cwd=tmp_path).strip() == VERSION
    assert "predict" in run(command, "--help", cwd=tmp_path)
    assert "--data.path" in run(command, "train", "--help", cwd=tmp_path)
    assert "ade20k-resnet50" in run(command, "train", "--list", cwd=tmp_path)


def test_its_modules_are_commands_too(python, tmp_path):
    for module in ("kiloseg.data.verify", "kiloseg.data.describe"):
        assert "usage" in run(str(python), "-m", module, "--help", cwd=tmp_path)


def test_versions_agree():
    """There is one version, in kiloseg/__init__.py; the other files that have to write it down follow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "kiloseg.__version__"}
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()
