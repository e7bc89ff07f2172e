"""Triton's kernels in a process of their own, because Triton reads TRITON_INTERPRET when it is imported: interpreted on the CPU, or
on a GPU where there is one; and compiled for an H100, which needs none."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

TYPES = {
    "candidates_ptr": "*bf16",
    "cells_ptr": "*bf16",
    "classes_ptr": "*bf16",
    "columns_ptr": "*i64",
    "drawn_ptr": "*i64",
    "ids_ptr": "*i64",
    "labels_ptr": "*i64",
    "left_out_ptr": "*i32",
    "outside_ptr": "*i32",
    "rows_ptr": "*bf16",
    "target_ptr": "*i64",
    "x_pieces": "*i32",
    "x_starts": "*i32",
    "x_weights": "*fp32",
    "y_pieces": "*i32",
    "y_starts": "*i32",
    "y_weights": "*fp32",
    **dict.fromkeys(("C", "N", "P", "S", "band", "columns", "h", "height", "image_width", "images"), "i32"),
    **dict.fromkeys(("magnitude", "rows", "w"), "i32"),
}
"""The types of kernels' arguments; those of others are float32."""


def answers_of(module, folder, names=()):
    """What `cases()` of a test module gives in the other process: name, name of a function of the module, its arguments.

    `names` are those of the cases that are wanted, if not all of them.
    """
    path = folder / "answers.pt"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in ("platform", "tests", "tests/ops")),
    }
    environment.pop("KILOSEG_TRITON", None)
    if DEVICE == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    source = f"import triton_process; triton_process.answer_all({module!r}, {str(path)!r}, {tuple(names)!r})"
    done = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return torch.load(path)


def answer_all(module, path, names):
    """What the other process does: answers every case, with its tensors on the device and back."""
    torch.set_num_threads(1)
    tests = importlib.import_module(module)
    answers = {
        name: move(getattr(tests, function)(*move(args, DEVICE)), "cpu")
        for name, function, args in tests.cases()
        if not names or name in names
    }
    torch.save(answers, path)


def move(value, device):
    if isinstance(value, dict):
        return {name: move(part, device) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(move(part, device) for part in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def compiled_for_h100(name, D, W, fixed, types, folder, monkeypatch):
    """`module.kernel` compiled with its first configuration."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("triton was told to interpret")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    module, kernel = name.split(".")
    kernel = getattr(importlib.import_module(f"kiloseg.ops.triton.{module}"), kernel)
    config = kernel.configs[0] if hasattr(kernel, "configs") else triton.Config({}, num_warps=8)
    kernel = kernel.fn if hasattr(kernel, "configs") else kernel
    fixed = {"D": D, "W": W, **fixed, **config.kwargs}
    fixed = {argument: value for argument, value in fixed.items() if argument in kernel.arg_names}
    types = {**TYPES, **types}
    signature = {
        argument: "constexpr" if argument in fixed else types.get(argument, "*fp32" if "_ptr" in argument else "fp32")
        for argument in kernel.arg_names
    }
    return triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=fixed),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
