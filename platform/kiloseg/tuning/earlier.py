"""Lets a search start from the trials of an earlier one: as known results, or as settings to try first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from kiloseg.overrides import differences, flatten
from kiloseg.storage.filesystems import inside, open_folder
from kiloseg.tuning.identity import PLAN, newest_with
from kiloseg.tuning.journal import JOURNAL, read_journal
from kiloseg.tuning.objectives import OBJECTIVES, Objective
from kiloseg.tuning.space import Dimension, Space

BEST = 3
"""How many of an earlier study's best settings are tried first if its results cannot be compared."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a search takes from an earlier study."""

    study_id: str
    known: list[FrozenTrial]
    """Results that can be compared with those of this search."""
    first: list[dict[str, Any]]
    """Settings to try first, by dotted names; none if there are comparable results."""
    reason: str
    """Why the results cannot be compared; empty if they can."""

    def __str__(self) -> str:
        if self.reason:
            return (
                f"starts from {self.study_id}: its {len(self.first)} best settings are tried first; its results cannot be compared "
                f"({self.reason})"
            )
        return f"starts from {self.study_id}: {len(self.known)} results are known"


def start_from(name: str, runs: str, space: Space, digest: str, objectives: Sequence[Objective]) -> Start:
    """Returns what a search takes from an earlier study.

    Its results count if all settings that are not searched, and the data, are the same now. Otherwise, such as for another
    number of classes, mIoU is on another level, and the best settings are tried again.

    Args:
        name: name of the earlier study, of which the newest with an end is taken, or its id.
        runs: folder of results, by path or URL.
        space: the space of this search; values outside of it are left out.
        digest: digest of this search's data set.
        objectives: the objectives of this search.

    Raises:
        ValueError: there is no such study.
    """
    study_id, earlier, plan = _read(name, runs)
    searched = {dimension.name for dimension in space.dimensions} | {
        name for trial in earlier.trials for name in trial.params
    }
    now = {name: value for name, value in flatten(space.base).items() if name not in searched} | {"data digest": digest}
    reason = differences(json.loads(json.dumps(now)), plan)
    then = OBJECTIVES[plan.get("tradeoff", "none")]
    if tuple(objectives) != then[: len(objectives)]:
        reason = reason or f"it had other objectives: {', '.join(objective.name for objective in then)}"
    complete = earlier.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not reason:
        known = [adapted for trial in complete if (adapted := _adapted(trial, space, len(objectives))) is not None]
        return Start(study_id=study_id, known=known, first=[], reason="")
    best = sorted(complete, key=lambda trial: trial.values[0], reverse=True)
    first = [inside_space(trial.params, space) for trial in best[:BEST]]
    return Start(study_id=study_id, known=[], first=first, reason=reason)


def inside_space(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Returns the values that a space can choose, given those that come before them."""
    chosen: dict[str, Any] = {}
    for dimension in space.dimensions:
        value = params.get(dimension.name)
        if value is not None and space.applies(dimension, chosen) and _holds(dimension, value):
            chosen[dimension.name] = value
    return chosen


def _holds(dimension: Dimension, value: Any) -> bool:
    if dimension.scale == "choice":
        return value in dimension.choices
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def _adapted(trial: FrozenTrial, space: Space, objectives: int) -> FrozenTrial | None:
    """Returns a trial as one of this space, or None if the space could not have chosen it."""
    held = inside_space(trial.params, space)
    recorded = FixedTrial(held)
    try:
        space(recorded)
    except ValueError:  # a setting has no value, or one outside of the space
        return None
    return optuna.trial.create_trial(
        params=held,
        distributions={name: recorded.distributions[name] for name in held},
        values=trial.values[:objectives],
        user_attrs=dict(trial.user_attrs),
        constraints=dict(trial.constraints),
    )


def _read(name: str, runs: str) -> tuple[str, optuna.Study, dict[str, Any]]:
    """Returns id, trials and plan of an earlier study."""
    storage = inside(runs, "studies")
    found = newest_with(storage, name, JOURNAL)
    if found is None:
        raise ValueError(f"--start-from {name}: no ended study of this name or id in {open_folder(storage).name}")
    study_id, place = found
    plan = json.loads(place.read(PLAN))
    with tempfile.TemporaryDirectory(prefix="kiloseg-") as scratch:
        file = Path(scratch, JOURNAL)
        file.write_bytes(place.read(JOURNAL))
        study = read_journal(file)
        trials = study.get_trials()
    copy = optuna.create_study(directions=study.directions)
    copy.add_trials(trials)
    return study_id, copy, plan
