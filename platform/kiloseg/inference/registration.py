"""Makes MLflow models of trained models, and registers them with their figures."""

from __future__ import annotations

import importlib.metadata
import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kiloseg.inference.classes import ModelClasses
from kiloseg.inference.loading import classes_of
from kiloseg.inference.served import INPUTS, OUTPUTS
from kiloseg.storage.credentials import shown
from kiloseg.tracking.model_names import DATA, split_name
from kiloseg.training.model_folder import save_folder

if TYPE_CHECKING:
    from kiloseg.tracking.runs import TrackedRun

PACKAGE = Path(__file__).resolve().parents[1]
REQUIREMENTS = (
    "docstring-parser",
    "filelock",
    "matplotlib",
    "numpy",
    "pandas",
    "pillow",
    "platformdirs",
    "psutil",
    "pyarrow",
    "safetensors",
    "segmentation-models-pytorch",
    "simplejpeg",
    "timm",
    "torch",
    "torchvision",
    "tqdm",
    "tyro",
    "webdataset",
    "zlib-ng",
)
"""Packages that a served model needs besides MLflow: those of kiloseg itself, whose code comes with the model, and pandas."""
EXAMPLE_SIZE = (64, 96)
"""Height and width of the example of an input."""


def save_mlflow_model(content: dict[str, Any], out: Path) -> None:
    """Writes a checkpoint's model as an MLflow model, which can be served without this installation.

    Args:
        content: content of a checkpoint.
        out: folder for the model; must not exist.

    Raises:
        ValueError: the folder exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists; give another folder")
    from kiloseg.tracking.models import Columns, save_model  # a machine without MLflow imports this module too

    classes = classes_of(content)
    with tempfile.TemporaryDirectory(prefix="kiloseg-") as scratch:
        data = Path(scratch) / DATA
        save_folder(content, classes.record(), data)
        save_model(
            out,
            data,
            loader_module="kiloseg.inference.served",
            code=PACKAGE,
            requirements=requirements(),
            inputs=Columns(types=INPUTS),
            outputs=Columns(types=OUTPUTS),
            example={"image": [_example()]},
            metadata=figures(content, classes),
        )


def register(content: dict[str, Any], run: TrackedRun, name: str) -> tuple[str, str]:
    """Logs a checkpoint's model to a run and registers it.

    Args:
        content: content of a checkpoint.
        run: the run that the model belongs to.
        name: NAME or NAME@ALIAS; see `kiloseg.tracking.models.register_model`, also for errors.

    Returns:
        The source of the registered model, and the number of its version.
    """
    from kiloseg.tracking.models import register_model

    classes = classes_of(content)
    with tempfile.TemporaryDirectory(prefix="kiloseg-") as scratch:
        model = Path(scratch) / "model"
        save_mlflow_model(content, model)
        tags = {key: str(value) for key, value in figures(content, classes).items()}
        return register_model(run, model, name, description=_description(content, classes), tags=tags)


def run_for(source: str, register: str, content: dict[str, Any], runs: Path) -> TrackedRun:
    """Returns the run in MLflow to log a registered model to: the one that the source belongs to, else a new one.

    Args:
        source: the source of the model.
        register: NAME or NAME@ALIAS; a new run belongs to experiment NAME.
        content: content of the checkpoint.
        runs: folder of MLflow's database; used only if MLFLOW_TRACKING_URI names no server.

    Raises:
        ConnectionError: the server does not answer.
    """
    from kiloseg.tracking.checkpoints import run_of_source
    from kiloseg.tracking.runs import Tracker

    found = run_of_source(source, runs)
    if found is not None:
        return found
    name, _ = split_name(register)
    tracker = Tracker.open(name, runs)
    run = tracker.study_run(f"register-{time.time_ns()}", content["config"], {"source": shown(source)})
    run.end("FINISHED")
    return run


def requirements() -> list[str]:
    """Returns `REQUIREMENTS` in the versions that are installed here."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def figures(content: dict[str, Any], classes: ModelClasses) -> dict[str, Any]:
    """Returns what a registry shows of a model: classes, data, and the mIoU and peak memory of its last validation, if known."""
    report = content.get("report", {})
    found: dict[str, Any] = {"classes": len(classes), "data": classes.data, "digest": classes.digest}
    if not classes.edited:  # else the report is of what the model was before
        found |= {
            name: report[key]
            for name, key in (("miou", "val/miou"), ("peak_memory_gib", "peak_memory_gib"))
            if report.get(key) is not None
        }
        if "peak_memory_gib" in found:
            found["peak_memory_kind"] = report.get("peak_memory_kind", "")
    return found


def _description(content: dict[str, Any], classes: ModelClasses) -> str:
    found = figures(content, classes)
    lines = [f"{len(classes):,} classes of data set {classes.data or '(not known)'}, after {content['step']:,} steps."]
    if "miou" in found:
        lines.append(f"Validation mIoU **{found['miou']:.4f}**.")
    if "peak_memory_gib" in found:
        lines.append(f"Peak memory of training **{found['peak_memory_gib']:.3f} GiB** ({found['peak_memory_kind']}).")
    return "\n\n".join(lines)


def _example() -> bytes:
    """Returns a PNG of color gradients."""
    height, width = EXAMPLE_SIZE
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 4, columns * 2, (rows + columns) % 256], axis=2).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()
