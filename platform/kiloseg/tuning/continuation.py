"""Trains the finished trials of a search on to a larger number of steps, as parts of the study.

A continued trial is a new one in Ray and in MLflow, whose numbers begin with those of the trial that it goes on from; in the
results it takes that trial's place. The earlier trial and its run stay as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kiloseg.config import Config
from kiloseg.overrides import override
from kiloseg.storage.filesystems import Folder
from kiloseg.tuning.grid import complete_points, run_points
from kiloseg.tuning.ranking import best_rows
from kiloseg.tuning.reports import FAILED_OUTCOMES
from kiloseg.tuning.study import RunningStudy, Study
from kiloseg.tuning.trial import settings_key
from kiloseg.tuning.trial_row import TrialRow

RECORD = "continued.json"
"""Name of the file in a study's folder that lists the parts in which its trials were continued."""
STEPS = "trainer.steps"
CONTINUES = "continues"
"""Tag of a continued trial's run in MLflow that names the trial that it goes on from."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a study in which trials are continued."""

    name: str
    """The part's name, for `RunningStudy.part`."""
    steps: int
    """The number of steps that its trials have."""
    points: dict[str, dict[str, Any]]
    """Settings of the trials that it continues, by their ids."""


def read_parts(place: Folder) -> list[Part]:
    """Returns the parts in which a study's trials were continued, in the order in which they were begun."""
    try:
        return [Part(**values) for values in json.loads(place.read(RECORD))]
    except FileNotFoundError:
        return []


def begun_steps(plan: dict[str, Any], place: Folder, steps: int) -> int:
    """Returns the number of steps that a study's trials were begun with.

    Args:
        plan: the study's plan.
        place: the study's folder.
        steps: the number of steps that its resumption asks for.

    Raises:
        ValueError: the resumption asks for fewer steps than trials of the study have.
    """
    begun = int(plan.get(STEPS, steps))
    reached = max([begun, *(part.steps for part in read_parts(place))])
    if steps < reached:
        raise ValueError(
            f"--resume with --{STEPS} {steps}: trials of this study have {reached} steps, and no trial can be made shorter; give "
            f"--{STEPS} {reached}, or more for which the finished trials go on"
        )
    return begun


def continued(
    running: RunningStudy, study: Study, base: Config, rows: Sequence[TrialRow], *, best: int = 0
) -> list[TrialRow]:
    """Returns a study's trials after those that finished have gone on to the number of steps of `base`.

    What an interruption of earlier continuations has left is done first. What has been continued is not continued again.

    Args:
        running: the study.
        study: how trials are run, resumed.
        base: the run that trials vary, with the new number of steps.
        rows: the trials with the number of steps that the study began with.
        best: how many of the trials go on, those with the highest mIoU; 0: all that finished.
    """
    parts = read_parts(running.place)
    found = list(rows)
    for steps in sorted({part.steps for part in parts} | {base.trainer.steps}):
        longer = override(base, {STEPS: steps})
        before = list(found)
        these = [part for part in parts if part.steps == steps]
        for part in these:
            found = merged(found, _run(running, study, longer, part, before), part)
        known = {trial for part in these for trial in part.points}
        wanted = [row for row in to_continue(before, longer, best) if row.trial not in known]
        if wanted and steps == base.trainer.steps:
            points = complete_points(longer, [row.overrides for row in wanted])
            points_of = {row.trial: values for row, values in zip(wanted, points, strict=True)}
            part = Part(name=f"steps-{steps}-{len(parts)}", steps=steps, points=points_of)
            running.place.write(RECORD, json.dumps([asdict(each) for each in [*parts, part]], indent=1).encode())
            found = merged(found, _run(running, study, longer, part, before), part)
    return found


def to_continue(rows: Sequence[TrialRow], base: Config, best: int = 0) -> list[TrialRow]:
    """Returns the finished trials with fewer steps than `base` has, the best first; of trials with equal settings one.

    Args:
        rows: the trials.
        base: the run that trials vary, with the new number of steps.
        best: how many of all finished trials to return, the best; 0: all.
    """
    finished = best_rows([row for row in rows if row.outcome == "finished"])
    keys = map(settings_key, complete_points(base, [row.overrides for row in finished]))
    distinct: dict[str, TrialRow] = {}
    for key, row in zip(keys, finished, strict=True):
        distinct.setdefault(key, row)
    return [row for row in list(distinct.values())[: best or None] if row.step < base.trainer.steps]


def merged(rows: Sequence[TrialRow], longer: Sequence[TrialRow], part: Part) -> list[TrialRow]:
    """Returns trials with those of a part in the places of the trials that they continue.

    A trial whose continuation failed keeps its place, and the failed one is a row besides.
    """
    origins = {settings_key(values): trial for trial, values in part.points.items()}
    by_origin = {origins[settings_key(row.overrides)]: row for row in longer}
    found = []
    for row in rows:
        after = by_origin.get(row.trial)
        if after is None:
            found.append(row)
            continue
        # The best validation may have come before the continuation, whose checkpoint is the earlier trial's.
        kept = row.checkpoint if after.checkpoint is None and after.miou == row.miou else after.checkpoint
        after = dataclasses.replace(
            after,
            overrides=row.overrides,
            continues=row.trial,
            checkpoint=kept,
            seconds=row.seconds + after.seconds,
            train_seconds=row.train_seconds + after.train_seconds,
        )
        found += [row, after] if after.outcome in FAILED_OUTCOMES else [after]
    return found


def _run(running: RunningStudy, study: Study, base: Config, part: Part, rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Runs the trials of a part, or what is left of them. Among `rows` are the trials that they continue."""
    place = running.part(part.name)
    place.continues = {settings_key(part.points[row.trial]): row.folder for row in rows if row.trial in part.points}
    resumed = dataclasses.replace(study, resume=place.resumable)
    print(f"{len(part.points)} trials go on to {part.steps} steps", flush=True)
    found = run_points(place, resumed, base, list(part.points.values()), tags={})
    origins = {settings_key(values): trial for trial, values in part.points.items()}
    for row in found:
        running.delivery.trial(row.trial).set_tags({CONTINUES: origins[settings_key(row.overrides)]})
    return found
