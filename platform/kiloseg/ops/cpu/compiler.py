"""Compiles the C kernels for this machine with its own compiler when they are first used, and loads them."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from kiloseg.storage.cache_folder import cache_folder

FOLDER = Path(__file__).parent
SOURCES = ("loss.c", "cells.c", "cells_best.c", "cells_nearest.c", "nearest.c", "depthwise.c")

# There is no -ffast-math: a NaN must stay a NaN, and sums must keep their order. The kernels rely on fused multiply-adds.
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")

_log = logging.getLogger(__name__)


def library() -> ctypes.CDLL | None:
    """Returns the compiled kernels, or None if KILOSEG_NATIVE=0 is in the environment or they cannot be built.

    The compiled library is kept in `cache_folder()` under a name that identifies sources, flags and CPU. If the kernels cannot be
    built, the reason is logged once, as a warning; torch then does their work, more slowly.
    """
    return None if os.environ.get("KILOSEG_NATIVE") == "0" else _loaded()


@functools.cache
def _loaded() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(compiled()))
    except (OSError, RuntimeError) as error:
        _log.warning(
            "the loss and the search for nearest classes run on a CPU without their compiled kernels, several times more "
            "slowly: %s (set KILOSEG_NATIVE=0 to silence this message)",
            error,
        )
        return None


def compiled() -> Path:
    """Returns the path of the shared library, and compiles it if it does not exist.

    Several processes may do this at once: each compiles to a file of its own, which is then renamed in one step.
    Raises:
        RuntimeError: There is no compiler, or it fails.
    """
    compiler = compiler_command()
    cpu = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    command = [*compiler, *FLAGS, *_threads(tuple(compiler)), cpu]
    digest = hashlib.sha256("\n".join([*command[1:], _cpu()]).encode())
    for path in sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    name = f"kernels-{digest.hexdigest()[:24]}.so"
    folder = cache_folder()
    if (folder / name).exists():
        return folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(suffix=".so", dir=folder)
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="kiloseg-"))
        _log.warning("%s: the kernels are compiled into %s for this process only", error, folder)
        handle, scratch = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        _compile([*command, *(str(FOLDER / source) for source in SOURCES), "-o", scratch, "-lm", "-lpthread"])
        Path(scratch).replace(folder / name)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return folder / name


@functools.cache
def _threads(compiler: tuple[str, ...]) -> list[str]:
    """Returns flags for OpenMP if torch ships a libgomp of the usual name, which is already in memory, so both share its threads.

    If torch's library has another name, or the compiler is clang with its own OpenMP, a second pool would spin beside torch's. In
    that case, threads are started for each call.
    """
    try:
        named = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    if "clang" in named:
        return []
    torch = importlib.util.find_spec("torch")
    libraries = Path(torch.origin).parent / "lib" if torch is not None and torch.origin else Path()
    return ["-fopenmp"] if (libraries / "libgomp.so.1").exists() else []


def compiler_command() -> list[str]:
    """Returns the path of the C compiler and the arguments that come first, from CC in the environment if that is set.

    CC holds words as for a shell, such as "gcc -m64", "ccache gcc" or a quoted path with a space.

    Raises:
        RuntimeError: there is no compiler, or CC is no list of words.
    """
    wanted = os.environ.get("CC", "").strip()
    try:
        # A path with a space that exists as it is written is meant as one word.
        words = [wanted] if shutil.which(wanted) else shlex.split(wanted)
    except ValueError as error:
        raise RuntimeError(f"CC = {wanted!r} cannot be split into words ({error}); quote it as for a shell") from error
    for name, *rest in [words] if words else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(name)
        if found:
            return [found, *rest]
    raise RuntimeError(
        f"CC = {wanted}: there is no program {words[0]!r}; unset CC or name an installed compiler"
        if words
        else "no C compiler (cc, gcc or clang) was found; install one"
    )


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command)} did not end within 300 s") from error
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[:500]}")


def _cpu() -> str:
    """Identifies CPUs that need separate code, since a cache may be on a disk that several machines share."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
