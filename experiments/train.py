"""One run, by name or by its settings: the rows of the paper's tables, and those that need neither archives nor a GPU.

    python experiments/train.py --list                                        all presets, and what they are held against
    python experiments/train.py --preset ade20k-resnet50 --data.path data/ade20k
    python experiments/train.py --preset emoji --data.path data/emoji-96 --loss.negatives.kind random
    python experiments/train.py --preset ade20k-resnet50 --data.path data/ade20k --resume      go on from its newest checkpoint

A preset sets every setting that is not given. The run goes to MLflow (experiment "train", or --experiment), its checkpoints to
trainer.output. The settings of the paper's code that are not in its text are those of independent runs,
https://github.com/shipra25jain/ESSNet/issues/5.

Expected: the published figures that --list prints; experiments/LOG.md has those that were measured.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

# The library beside this file, not one that is installed: a submitted job runs the code that was submitted.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from kiloseg import cli
from kiloseg.config import Config
from kiloseg.data.description import read_info
from kiloseg.overrides import flatten, head_name, override
from kiloseg.presets import PRESETS, Preset
from kiloseg.storage.filesystems import open_folder
from kiloseg.tracking.delivery import Outbox
from kiloseg.tracking.runs import TrackedRun, Tracker, source_tags
from kiloseg.training.loop import train
from kiloseg.training.report import Report
from kiloseg.tuning.summary import iou_table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Arguments(cli.Preset):
    """Train one model."""

    list: bool = False
    """Print all presets and end."""
    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    experiment: str = "train"
    """Name of the experiment in MLflow."""
    runs: Path = Path("runs")
    """Folder of MLflow's database and files where no server is named."""
    resume: bool = False
    """Go on from the newest checkpoint in trainer.output."""


def main(arguments: Arguments) -> None:
    """Trains, records the run, and prints its figure beside the published ones."""
    if arguments.list:
        print_presets()
        return
    preset = PRESETS[arguments.preset]
    if not arguments.run.data.path:
        raise ValueError(
            f"--data.path is missing; the data set of preset {arguments.preset} is built by\n    {preset.build}"
        )
    output = Path(arguments.run.trainer.output).resolve()
    config = override(
        arguments.run,
        {"data.path": open_folder(arguments.run.data.path).location, "trainer.output": str(output)},
    )
    info = read_info(config.data.path)
    if not arguments.resume:
        check_unused(output)
    tracker = Tracker.open(arguments.experiment, arguments.runs.resolve())
    run = tracked_run(arguments, config, tracker, output)
    run.log_dataset(info.name, info.digest, config.data.path)
    outbox = Outbox(output, run, alone=True)  # a server that is gone costs neither time nor numbers

    def report(new: Report) -> None:
        outbox.study.log_metrics(
            {name: value for name, value in new.numbers().items() if name != "step"}, step=new.step
        )
        if new.validation is not None:
            tqdm.write(f"step {new.step:,}: val/miou {new.validation.miou:.4f}, loss {new.loss:.3f}")

    try:
        last = train(config, report, resume=output if arguments.resume else None)
    except BaseException:
        outbox.study.end("FAILED")
        outbox.close(patience_s=5)
        raise
    validation = last.validation
    assert validation is not None, "every run ends with a validation"
    outbox.study.set_tags({"peak_memory_kind": validation.peaks.kind})
    outbox.study.log_table(iou_table(config.data, validation.iou_per_class), "iou_per_class.json")
    outbox.study.end("FINISHED")
    outbox.close()
    print(
        f"\n{arguments.preset}: val/miou {validation.miou:.4f} after {last.step:,} steps, peak memory "
        f"{validation.peaks.training_gib:.3f} GiB ({validation.peaks.kind})"
    )
    print_published(preset)
    print(f"checkpoints: {output}\ncompare in MLflow: {tracker.ui_command()}")


def check_unused(output: Path) -> None:
    """A new run must not go on from, or drop, checkpoints of an older one, nor deliver its numbers as its own."""
    left = sorted(path.name for pattern in ("step-*.pt", "outbox.jsonl") for path in output.glob(pattern))
    if left:
        raise ValueError(
            f"--trainer.output {output} holds a run already ({', '.join(left)}): --resume goes on with it; for a new one give "
            "another --trainer.output, or remove that folder"
        )


def tracked_run(arguments: Arguments, config: Config, tracker: Tracker, output: Path) -> TrackedRun:
    """A new run in MLflow, or, to go on, the one whose id lies beside the checkpoints."""
    note = output / "mlflow_run_id"
    if arguments.resume and note.is_file():
        return TrackedRun(tracker=tracker, run_id=note.read_text().strip())
    tags = source_tags(ROOT, "experiments/train.py") | {"preset": arguments.preset, "head": head_name(config)}
    name = f"{arguments.preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = tracker.study_run(name, flatten(config), tags)
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(run.run_id + "\n")
    return run


def print_published(preset: Preset) -> None:
    """The figures that a run of the preset is held against."""
    for one in preset.published:
        print(f"    {one.miou:.4f}  {one.system} ({one.source})")
    if not preset.published:
        print("    nothing is published to hold it against")


def print_presets() -> None:
    """All presets, their data sets and published figures."""
    for name, preset in PRESETS.items():
        config = preset.config
        print(
            f"{name}: {config.model.arch} over {config.model.backbone}, D = {config.model.embed_dim}, "
            f"{config.loss.negatives.kind} negatives, batch {config.trainer.batch_size} of {config.data.crop} px, "
            f"{config.trainer.steps:,} steps\n    {preset.build}"
        )
        print_published(preset)


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__)
