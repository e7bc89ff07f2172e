"""Trains one model and records it in MLflow.

The preset --preset supplies the settings you omit; --list prints the presets and the published figures they are compared
with. Checkpoints are written to --trainer.output, and --resume continues from the newest one there. --dry-run prints what
would be trained and the memory that it needs, and trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kiloseg import cli
from kiloseg.config import Config
from kiloseg.presets import PRESETS, Preset
from kiloseg.tracking.model_names import split_name


@dataclass(frozen=True, kw_only=True)
class Arguments(cli.Preset):
    """Train one model."""

    list: bool = False
    """Print all presets and exit."""
    run: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    experiment: str = "train"
    """Name of the experiment in MLflow."""
    runs: Path = Path("runs")
    """Folder of MLflow's database and files; used only if MLFLOW_TRACKING_URI names no server."""
    resume: bool = False
    """Continue from the newest checkpoint in trainer.output."""
    dry_run: bool = False
    """Check the settings and the data, print what would be trained and the planned memory, and end without a step."""
    tracking: Literal["mlflow", "csv", "tensorboard"] = "mlflow"
    """Where numbers go. csv: to metrics.csv in trainer.output. tensorboard: there too, and to trainer.output/tensorboard; both
    work without MLflow."""
    register: str | None = None
    """Register the trained model in MLflow, as NAME@ALIAS; NAME alone gets the alias best."""


def main(arguments: Arguments, source: str = "kiloseg train") -> None:
    """Trains, records the run, and prints its mIoU next to the published figures.

    Args:
        arguments: the arguments of the command line.
        source: the command, as MLflow shows it.
    """
    if arguments.list:
        print_presets()
        return
    preset = PRESETS[arguments.preset]
    if not arguments.run.data.path:
        raise ValueError(
            f"--data.path is missing; the data set of preset {arguments.preset} is built by\n    {preset.build}"
        )
    if arguments.register is not None:
        split_name(arguments.register)
        if arguments.tracking != "mlflow":
            raise ValueError(
                f"--register with --tracking {arguments.tracking}: expected --tracking mlflow, which has the registry"
            )
    from kiloseg.tuning.paths import absolute
    from kiloseg.tuning.single_run import train_recorded

    run = absolute(arguments.run, arguments.runs)
    if arguments.dry_run:
        from kiloseg.commands.dry_run import dry_run

        print(dry_run(run, resume=arguments.resume))
        return
    print(
        train_recorded(
            run,
            preset=arguments.preset,
            experiment=arguments.experiment,
            runs=arguments.runs,
            resume=arguments.resume,
            source=source,
            tracking=arguments.tracking,
        )
    )
    if arguments.register is not None:
        from kiloseg.tuning.registering import register_output

        print(register_output(run.trainer.output, arguments.register, arguments.runs), end="")
    print_published(preset)


def print_published(preset: Preset) -> None:
    """Prints the published figures that a run of the preset is compared with."""
    for one in preset.published:
        print(f"    {one.miou:.4f}  {one.system} ({one.source})")
    if not preset.published:
        print("    no published result to compare it with")


def print_presets() -> None:
    """Prints all presets with their data sets and published figures."""
    for name, preset in PRESETS.items():
        config = preset.config
        print(
            f"{name}: {config.model.arch} over {config.model.backbone}, D = {config.model.embed_dim}, "
            f"{config.loss.negatives.kind} negatives, batch {config.trainer.batch_size} of {config.data.crop} px, "
            f"{config.trainer.steps:,} steps\n    {preset.build}"
        )
        print_published(preset)
