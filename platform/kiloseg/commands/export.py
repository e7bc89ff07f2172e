"""Writes a trained model in a form that other programs and machines can load.

    kiloseg export runs/train --format folder --out models/mine
    kiloseg export runs/train --format onnx --out mine.onnx
    kiloseg export runs/train --format torch --out mine.pt2
    kiloseg export runs/train --format mlflow --out served
    kiloseg export runs/train --format mlflow --register mine@best

folder: config.json, classes.json and model.safetensors, none of which can run code. `kiloseg.load` and every command accept the
folder by its path or by a URL such as s3://BUCKET/FOLDER.

onnx: a graph from "images" (uint8, batch x 3 x height x width, of any size) to "labels" and the network's outputs. The class table
is an input with a default, and the file's metadata has the names of the classes. The file is compared with the model in onnxruntime
before it is written; examples/predict_onnx.py uses it without torch.

torch: the same as a program of torch.export, for `torch.export.load(FILE).module()`. That unpickles, so load only files that
you trust.

mlflow: a model with the code of kiloseg, for `mlflow.pyfunc.load_model` and `mlflow models serve`. With --register it becomes a new
version of a registered model, and every command accepts models:/NAME@ALIAS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from kiloseg.storage.commands import shell


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Export a model."""

    source: tyro.conf.Positional[str]
    """A checkpoint, a folder of them, an exported folder, runs:/ID, or the name of a study."""
    format: Literal["folder", "onnx", "torch", "mlflow"]
    """What to write, as described above."""
    out: str | None = None
    """Path or URL of the folder, or path of the file. May be omitted with --register."""
    register: str | None = None
    """Register the model of --format mlflow in MLflow, as NAME@ALIAS; NAME alone gets the alias best."""
    opset: int = 20
    """Version of ONNX's operators, 18 to 23."""
    overwrite: bool = False
    """Replace what is already there."""
    runs: Path = Path("runs")
    """Folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server."""


def main(arguments: Arguments) -> None:
    """Writes the model and prints where it is."""
    if arguments.register is not None and arguments.format != "mlflow":
        raise ValueError(f"--register {arguments.register} with --format {arguments.format}: expected --format mlflow")
    if arguments.format == "mlflow":
        _write_mlflow(arguments)
    elif arguments.out is None:
        raise ValueError("--out is missing: the folder or file to write")
    elif arguments.format == "folder":
        _write_folder(arguments, arguments.out)
    else:
        _write_file(arguments, arguments.out)


def _write_folder(arguments: Arguments, out: str) -> None:
    from kiloseg.inference.loading import classes_of, content_of
    from kiloseg.training.model_folder import save_folder

    content = content_of(arguments.source, arguments.runs)
    classes = classes_of(content)
    save_folder(content, classes.record(), out, overwrite=arguments.overwrite)
    print(f"{out.partition('?')[0]}: {len(classes):,} classes")


def _write_file(arguments: Arguments, where: str) -> None:
    from kiloseg.inference.loading import load
    from kiloseg.storage.atomic import write_whole

    out = _local(where, arguments.format)
    if out.is_dir() or (out.exists() and not arguments.overwrite):
        kind = "is a folder" if out.is_dir() else "exists; give --overwrite, or another --out"
        raise ValueError(f"--out {out} {kind}")
    if arguments.format == "onnx":
        onnx_model = _import_onnx()
        onnx_model.check_opset(arguments.opset)
    # In full precision and where onnxruntime computes too, so that the two can be compared.
    model = load(arguments.source, device="cpu", precision="fp32", runs=arguments.runs)
    if arguments.format == "onnx":
        content = onnx_model.onnx_model(model, opset=arguments.opset)
        error = onnx_model.check_onnx(content, model)
        checked = f", opset {arguments.opset}; outputs in onnxruntime differ by {error:.1e} of the largest"
    else:
        from kiloseg.inference.exported import torch_program

        content, checked = torch_program(model), ""
    write_whole(out, content)
    print(f"{out}: {len(model.classes):,} classes{checked}")


def _write_mlflow(arguments: Arguments) -> None:
    if arguments.out is None and arguments.register is None:
        raise ValueError("--out and --register are missing: give a folder to write, a name to register, or both")
    if arguments.register is not None:
        from kiloseg.tracking.model_names import split_name

        split_name(arguments.register)
    from kiloseg.inference.loading import content_of
    from kiloseg.inference.registration import register, run_for, save_mlflow_model

    if arguments.out is not None:
        out = _local(arguments.out, arguments.format)
        if out.exists():
            raise ValueError(f"--out {out} exists; give another folder")
    content = content_of(arguments.source, arguments.runs)
    if arguments.out is not None:
        save_mlflow_model(content, out)
        serve = "mlflow models serve --env-manager local --host 127.0.0.1 --model-uri"
        print(f"{out}: serve it with {shell(*serve.split(), out.absolute())}")
    if arguments.register is not None:
        run = run_for(arguments.source, arguments.register, content, arguments.runs)
        source, version = register(content, run, arguments.register)
        print(f"{source}: version {version}, in MLflow at {run.tracker.shown}")


def _local(out: str, format: str) -> Path:
    if "://" in out:
        raise ValueError(f"--out {out.partition('?')[0]}: expected a path of this machine for --format {format}")
    return Path(out)


def _import_onnx() -> Any:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401

        from kiloseg.inference import onnx_model
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--format onnx needs the package {error.name}: pip install 'kiloseg[onnx]', or pip install onnx onnxruntime onnxscript"
        ) from error
    return onnx_model
