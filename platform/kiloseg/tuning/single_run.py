"""Trains a single run and records it, in MLflow as a study does for many, or in files."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tqdm import tqdm

from kiloseg.config import Config
from kiloseg.data.classes import iou_table, with_sizes_of_data
from kiloseg.data.description import read_info
from kiloseg.overrides import flatten, head_name, override
from kiloseg.tracking.files import METRICS, CsvLog, RunLog, TensorBoardLog
from kiloseg.training.checkpoint import load_newest
from kiloseg.training.checkpoint_names import checkpoint_name
from kiloseg.training.loop import train
from kiloseg.training.report import Report

if TYPE_CHECKING:
    from kiloseg.tracking.runs import TrackedRun, Tracker

CHECKOUT = Path(__file__).resolve().parents[3]

METRIC = "val/miou"

Tracking = Literal["mlflow", "csv", "tensorboard"]


def train_recorded(
    config: Config,
    *,
    preset: str,
    experiment: str,
    runs: Path,
    resume: bool,
    source: str,
    tracking: Tracking = "mlflow",
) -> str:
    """Trains a run, and records its numbers, its data set and a table of IoUs.

    Args:
        config: the run, with absolute paths (see `kiloseg.tuning.paths.absolute`).
        preset: name of the preset that the run is based on, for a tag of the run.
        experiment: name of the run's experiment in MLflow.
        runs: folder of MLflow's database and files; used only if MLFLOW_TRACKING_URI names no server.
        resume: whether to continue from the newest checkpoint in `trainer.output`.
        source: the command that started the run.
        tracking: where numbers go: to MLflow, or to files in `trainer.output`, for which MLflow need not be installed.

    Returns:
        A few lines of text with the result and where to find it.

    Raises:
        ValueError: `trainer.output` holds a run and `resume` is not set, or as `kiloseg.train`.
    """
    output = Path(config.trainer.output).resolve()
    config = override(config, {"trainer.output": str(output)})
    # MLflow shows the numbers, which models are compared by.
    config = with_sizes_of_data(config)
    if not resume:
        check_unused(output)

    def report(new: Report) -> None:
        log.log_metrics({name: value for name, value in new.numbers().items() if name != "step"}, step=new.step)
        if new.validation is not None:
            tqdm.write(f"step {new.step:,}: val/miou {new.validation.miou:.4f}, loss {new.loss:.3f}")

    with contextlib.ExitStack() as opened:
        if tracking == "mlflow":
            log, where = opened.enter_context(
                _in_mlflow(config, experiment, runs, preset=preset, resume=resume, source=source)
            )
        else:
            log, where = _in_files(output, tracking)
            if resume:
                _repeat_reports(log, output)  # those that are in the file already are passed over
        try:
            last = train(config, report, resume=output if resume else None)
        except BaseException:
            log.end("FAILED")
            raise
        validation = last.validation
        assert validation is not None, "every run ends with a validation"
        log.set_tags({"peak_memory_kind": validation.peaks.kind})
        log.log_table(iou_table(config.data, validation.iou_per_class), "iou_per_class.json")
        log.end("FINISHED")
    return (
        f"checkpoints: {output}\n{where}\n\n{preset}: val/miou {validation.miou:.4f} after "
        f"{last.step:,} steps, peak memory {validation.peaks.training_gib:.3f} GiB ({validation.peaks.kind})"
        + (_stopped_early(config, output) if last.step < config.trainer.steps else "")
    )


class _Log(NamedTuple):
    log: RunLog
    where: str
    """Where the numbers are, as text for people."""


def _in_files(output: Path, tracking: Tracking) -> _Log:
    if tracking == "csv":
        written = CsvLog(output)
        return _Log(written, f"numbers: {written.path}")
    events = TensorBoardLog(output)
    return _Log(
        events, f"numbers: {events.path}\nlook at them: {shlex.join(['tensorboard', '--logdir', str(events.events)])}"
    )


@contextlib.contextmanager
def _in_mlflow(
    config: Config, experiment: str, runs: Path, *, preset: str, resume: bool, source: str
) -> Iterator[_Log]:
    # MLflow need not be installed for other ways of tracking.
    from kiloseg.tracking.delivery import Delivery
    from kiloseg.tracking.runs import Tracker

    info = read_info(config.data.path)
    output = Path(config.trainer.output)
    tracker = Tracker.open(experiment, runs.resolve())
    run, is_new = _tracked_run(config, tracker, output, preset=preset, resume=resume, source=source)
    run.log_dataset(info.name, info.digest, config.data.path)
    with Delivery(output, run, alone=True) as delivery:  # an unreachable server costs neither time nor numbers
        if is_new and resume:
            _repeat_reports(delivery.study, output)
        yield _Log(delivery.study, f"compare in MLflow: {tracker.ui_command()}")


def _stopped_early(config: Config, output: Path) -> str:
    validated = [report for report in _reports(output) if METRIC in report]
    best = max(validated, key=lambda report: report[METRIC])
    return (
        f"\nstopped early: {config.trainer.patience} validations in a row (trainer.patience) were not better than the best, "
        f"{best[METRIC]:.4f}, whose checkpoint is {output / checkpoint_name(int(best['step']))}"
    )


def _reports(output: Path) -> list[dict[str, Any]]:
    """Returns the numbers of a run so far, which are in its newest checkpoint."""
    stored = load_newest(output)
    return [] if stored is None else list(stored.get("reports", []))


def _repeat_reports(log: RunLog, output: Path) -> None:
    """Logs the numbers of a run from before its resumption."""
    for report in _reports(output):
        log.log_metrics({name: value for name, value in report.items() if name != "step"}, step=int(report["step"]))


def check_unused(output: Path) -> None:
    """Raises ValueError if the folder holds a run, whose checkpoints and undelivered numbers a new run must not touch."""
    left = sorted(path.name for pattern in ("step-*.pt", "outbox.jsonl", METRICS) for path in output.glob(pattern))
    if left:
        raise ValueError(
            f"--trainer.output {output} holds a run already ({', '.join(left)}): --resume continues it; for a new run, give "
            "another --trainer.output, or remove that folder"
        )


def _tracked_run(
    config: Config, tracker: Tracker, output: Path, *, preset: str, resume: bool, source: str
) -> tuple[TrackedRun, bool]:
    """Returns the run in MLflow and whether it is new: when resuming, the one whose id is stored next to the checkpoints.

    Raises:
        DeletedError: that run was deleted.
    """
    from kiloseg.tracking.checkpoints import RUN_NOTE
    from kiloseg.tracking.runs import TrackedRun, source_tags

    note = output / RUN_NOTE
    if resume and note.is_file():
        run = TrackedRun(tracker=tracker, run_id=note.read_text().strip())
        if run.require_active():
            return run, False
        tqdm.write(
            f"MLflow does not know run {run.run_id}, which {output} was recorded as; a new run gets all its numbers"
        )
    tags = source_tags(CHECKOUT, source) | {"preset": preset, "head": head_name(config)}
    name = f"{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = tracker.study_run(name, flatten(config), tags)
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(run.run_id + "\n")
    return run, True
