"""Says what the drivers of a shared study have found together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from kiloseg.tuning.callbacks.settings_text import flags_text
from kiloseg.tuning.shared_study import SharedStudy
from kiloseg.tuning.shared_trials import PEAKS, STUDY, TRIAL
from kiloseg.tuning.space import Space


@dataclass(frozen=True, kw_only=True)
class SharedBest:
    """The best trial of all drivers."""

    trial: str
    study_id: str
    """The driver's study that holds it, with its checkpoint and its run in MLflow."""
    miou: float
    """mIoU of its last validation, in [0, 1], which is what the sampler knows."""
    settings: Mapping[str, Any]
    """The settings that the search varies, by dotted names, with the trial's values."""


@dataclass(frozen=True, kw_only=True)
class SharedResult:
    """The trials of all drivers of a shared study. As a string, lines for the end of a search."""

    place: str
    """Name and storage of the shared study."""
    trials: Mapping[str, int]
    """How many trials each driver's study has, by its id."""
    num_running: int
    """How many of them have not ended yet."""
    best: SharedBest | None
    """None if no trial has ended with a mIoU, or none stayed within the memory that was given."""

    def __str__(self) -> str:
        drivers = ", ".join(f"{study_id} {number}" for study_id, number in self.trials.items())
        running = f", {self.num_running} of which have not ended yet" if self.num_running else ""
        lines = [f"shared study {self.place}: {sum(self.trials.values())} trials ({drivers}){running}"]
        if self.best is not None:
            flags = flags_text(self.best.settings)
            lines.append(
                f"best of all drivers: trial {self.best.trial} of study {self.best.study_id}, val/miou {self.best.miou:.4f} at "
                f"its end: {flags}"
            )
        return "\n".join(lines)

    def tags(self) -> dict[str, str]:
        """Returns tags for the study's run in MLflow."""
        tags = {"shared.place": self.place, "shared.trials": str(sum(self.trials.values()))}
        if self.best is not None:
            tags |= {"shared.best.study": self.best.study_id, "shared.best.trial": self.best.trial}
        return tags


def shared_result(shared: SharedStudy, space: Space, within_gib: float | None = None) -> SharedResult:
    """Returns what the drivers have found so far.

    Args:
        shared: the shared study.
        space: the space that they search.
        within_gib: the most memory in GiB that the best trial's training and validation may have needed; None: any.
    """
    trials = shared.trials()
    complete = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and (within_gib is None or _peak_gib(trial) <= within_gib)
    ]
    best = max(complete, key=lambda trial: trial.values[0], default=None)
    return SharedResult(
        place=str(shared.place),
        trials=Counter(str(trial.user_attrs.get(STUDY)) for trial in trials),
        num_running=sum(not trial.state.is_finished() for trial in trials),
        best=None
        if best is None
        else SharedBest(
            trial=best.user_attrs[TRIAL],
            study_id=best.user_attrs[STUDY],
            miou=best.values[0],
            settings=space.required(best.params) | best.params,
        ),
    )


def _peak_gib(trial: FrozenTrial) -> float:
    """Returns the larger one of a trial's two peaks; infinity if neither is known."""
    return max((trial.user_attrs[name] for name in PEAKS if name in trial.user_attrs), default=math.inf)
