"""Trains a single run and records it in MLflow, as a study does for many."""

from __future__ import annotations

import time
from pathlib import Path

from tqdm import tqdm

from kiloseg.config import Config
from kiloseg.data.classes import iou_table
from kiloseg.data.description import read_info
from kiloseg.overrides import flatten, head_name, override
from kiloseg.storage.filesystems import open_folder
from kiloseg.tracking.checkpoints import RUN_NOTE
from kiloseg.tracking.delivery import Delivery
from kiloseg.tracking.runs import TrackedRun, Tracker, source_tags
from kiloseg.training.loop import train
from kiloseg.training.report import Report

CHECKOUT = Path(__file__).resolve().parents[3]


def train_recorded(config: Config, *, preset: str, experiment: str, runs: Path, resume: bool, source: str) -> str:
    """Trains a run, and records its numbers, its data set and a table of IoUs.

    Args:
        config: the run.
        preset: name of the preset that the run is based on, for a tag of the run.
        experiment: name of the run's experiment in MLflow.
        runs: folder of MLflow's database and files; used only if MLFLOW_TRACKING_URI names no server.
        resume: whether to continue from the newest checkpoint in `trainer.output`.
        source: the command that started the run.

    Returns:
        A few lines of text with the result and where to find it.

    Raises:
        ValueError: `trainer.output` holds a run and `resume` is not set, or as `kiloseg.train`.
    """
    output = Path(config.trainer.output).resolve()
    config = override(
        config,
        {"data.path": open_folder(config.data.path).location, "trainer.output": str(output)},
    )
    info = read_info(config.data.path)
    if not resume:
        _check_unused(output)
    tracker = Tracker.open(experiment, runs.resolve())
    run = _tracked_run(config, tracker, output, preset=preset, resume=resume, source=source)
    run.log_dataset(info.name, info.digest, config.data.path)

    def report(new: Report) -> None:
        delivery.study.log_metrics(
            {name: value for name, value in new.numbers().items() if name != "step"}, step=new.step
        )
        if new.validation is not None:
            tqdm.write(f"step {new.step:,}: val/miou {new.validation.miou:.4f}, loss {new.loss:.3f}")

    with Delivery(output, run, alone=True) as delivery:  # an unreachable server costs neither time nor numbers
        try:
            last = train(config, report, resume=output if resume else None)
        except BaseException:
            delivery.study.end("FAILED")
            raise
        validation = last.validation
        assert validation is not None, "every run ends with a validation"
        delivery.study.set_tags({"peak_memory_kind": validation.peaks.kind})
        delivery.study.log_table(iou_table(config.data, validation.iou_per_class), "iou_per_class.json")
        delivery.study.end("FINISHED")
    return (
        f"checkpoints: {output}\ncompare in MLflow: {tracker.ui_command()}\n\n{preset}: val/miou {validation.miou:.4f} after "
        f"{last.step:,} steps, peak memory {validation.peaks.training_gib:.3f} GiB ({validation.peaks.kind})"
    )


def _check_unused(output: Path) -> None:
    """Raises ValueError if the folder holds a run, whose checkpoints and undelivered numbers a new run must not touch."""
    left = sorted(path.name for pattern in ("step-*.pt", "outbox.jsonl") for path in output.glob(pattern))
    if left:
        raise ValueError(
            f"--trainer.output {output} holds a run already ({', '.join(left)}): --resume continues it; for a new run, give "
            "another --trainer.output, or remove that folder"
        )


def _tracked_run(
    config: Config, tracker: Tracker, output: Path, *, preset: str, resume: bool, source: str
) -> TrackedRun:
    """Creates a run in MLflow, or, when resuming, returns the run whose id is stored next to the checkpoints."""
    note = output / RUN_NOTE
    if resume and note.is_file():
        return TrackedRun(tracker=tracker, run_id=note.read_text().strip())
    tags = source_tags(CHECKOUT, source) | {"preset": preset, "head": head_name(config)}
    name = f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = tracker.study_run(name, flatten(config), tags)
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(run.run_id + "\n")
    return run
